"""RPC handlers, validation and message codecs, independent of the transport."""
