"""Training: data, models, objective, loop, checkpoint, evaluation (torch).

Knows neither ONNX nor the bundle: it leaves a run folder, which `export` reads.
"""
