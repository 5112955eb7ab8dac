"""The tests. Real gRPC over a real port, real onnxruntime, a really trained bundle."""
