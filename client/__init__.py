"""The client: a Flower ClientApp, what its process holds, and what stays on it. Knows nothing of `server`."""

import fedmask  # noqa: F401  # before torch: it says how torch's threads wait
