"""Tests, most of them with real gRPC over a real port, onnxruntime and a trained bundle."""
