"""Training in torch: data, models, training loop, checkpoints, evaluation, report.

It imports neither ONNX nor the `bundle` package. Its result is a run folder, which `export` reads.
"""

import os

# How long an OpenMP thread spins before it sleeps; read when torch is imported. With the long
# default, a step took over 200 ms instead of 26 while other processes used the cores too. On
# idle cores this value is as fast as the default (8.6 ms on two threads), and faster than
# sleeping at once (17 ms).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
