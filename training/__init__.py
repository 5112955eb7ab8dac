"""Training in torch: data, models, training loop, checkpoints, evaluation, report.

Imports neither ONNX nor the bundle: its result is a run folder, which `export` reads.
"""

import os

# How long an OpenMP thread spins before it sleeps; read when torch is imported. With the
# default, which is long, a step took over 200 ms instead of 26 where other processes used
# the cores too. On idle cores this is as fast (8.6 ms on two threads), while sleeping at
# once is not (17 ms).
os.environ.setdefault("GOMP_SPINCOUNT", "5000")
