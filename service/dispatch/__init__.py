"""What every way of calling has in common: dispatch of calls, statuses, tokens, memory."""
