"""gRPC in front of the servicers, by our own HTTP/2 or by grpcio; only this folder imports grpc."""
