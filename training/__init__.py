"""Training: data, models, objective, loop, checkpoint, evaluation (torch).

Knows neither ONNX nor the bundle: it leaves a run folder, which `export` reads.
"""

import os

# Threads that wait sleep, not spin: where others use the cores too, spinning made
# training three times slower (and wasted its budget); alone, sleeping costs a tenth.
# OpenMP reads this when torch is imported; OMP_WAIT_POLICY=ACTIVE takes it back.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
