"""Inference: NumPy in, NumPy out. Batching, admission, seeded sampling, scoring; no transport."""
