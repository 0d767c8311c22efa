"""The server: a Flower ServerApp, its Strategy, and the in-process Grid. Knows nothing of `client`."""
