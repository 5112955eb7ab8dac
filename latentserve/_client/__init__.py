"""Both clients, and the plans, requests and replies that they share."""
