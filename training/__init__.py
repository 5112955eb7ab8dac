"""Training: data, models, objective, loop, checkpoint, evaluation (torch).

Knows neither ONNX nor the bundle: it leaves a run folder, which `export` reads.
"""

import os

# How long a thread of OpenMP spins before it sleeps; read when torch is imported. The
# default is long: where others use the cores too, a step took over 200 ms and not 26.
# This is as quick alone (8.6 ms on two threads); sleeping at once is not (17 ms).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
