"""Several server processes on one port, and the supervisor that watches them."""
