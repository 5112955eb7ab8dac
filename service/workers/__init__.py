"""Several worker processes on one port, and their supervisor."""
