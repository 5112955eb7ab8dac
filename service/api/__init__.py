"""Request messages to reply messages: validation, codecs, RPC handlers; no transport."""
