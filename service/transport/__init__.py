"""gRPC transports: our own HTTP/2 server, or grpcio. Only this folder imports grpc."""
