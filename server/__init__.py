"""The server: a Flower ServerApp, its Strategy, and the in-process Grid. Knows nothing of `client`."""

import fedmask  # noqa: F401  # before torch: it says how torch's threads wait
