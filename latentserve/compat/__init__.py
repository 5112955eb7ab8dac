"""Wire-compatible twins of a few official messages."""
