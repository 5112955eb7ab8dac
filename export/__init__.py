"""Run folder -> verified bundle (torch, onnx, onnxruntime)."""
