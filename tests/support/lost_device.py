"""`latentserve serve` with a device that is lost; run by tests/program/test_health.py.

A GPU cannot be made to fail on demand, so the probe of the device is replaced by one that
reports an error. What triggers the probe, a graph that raises on a batch, is real.
"""

import sys

import service.server
from service.models.onnx import Device


def _lost(device: Device) -> str:
    return f"CUDA error 719 on {device}"


service.server.device_problem = _lost  # type: ignore[attr-defined]

if __name__ == "__main__":
    from service.cli import main

    sys.exit(main(sys.argv[1:]))
