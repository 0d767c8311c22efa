"""What travels between server and clients, and how its bytes are counted."""
