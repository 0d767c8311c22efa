"""The client: a Flower ClientApp, what its process holds, and what stays on it. Knows nothing of `server`."""
