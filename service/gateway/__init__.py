"""HTTP gateway: the same calls for those who have no gRPC stubs."""
