"""RPC handlers, validation and codecs: request messages to reply messages, on any transport."""
