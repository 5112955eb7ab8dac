"""Wire-compatible counterparts of google.rpc and grpc.health.v1 messages, for the client."""
