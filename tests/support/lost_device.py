"""`latentserve serve` on a machine whose device dies: run by tests/program/test_health.py.

No GPU can be made to fail on demand, so one thing is put in its place: the probe that
asks the device whether it still works, and is told no. What makes the server ask, a graph
that fails on a batch, is real.
"""

import sys

import service.server
from service.models.onnx import Device


def _dead(device: Device) -> str:
    return f"CUDA error 719 on {device}"


service.server.device_problem = _dead  # type: ignore[attr-defined]

if __name__ == "__main__":
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
