"""Exports a run folder as a verified bundle; needs torch, onnx and onnxruntime."""
