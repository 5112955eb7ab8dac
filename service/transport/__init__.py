"""gRPC in front of the servicers: grpcio's asyncio server. The only place that imports grpc."""
