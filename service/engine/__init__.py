"""Inference on NumPy arrays: batching, admission, seeded sampling, scoring; no transport."""
