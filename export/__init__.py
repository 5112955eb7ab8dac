"""Exports a run folder as a verified bundle (torch, onnx, onnxruntime)."""
