"""Both clients: the requests and replies that they share, and how each sends them."""
