"""Peak memory of computing a row, measured in a process of its own."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import GraphName, Manifest
from service.models.onnx import Device, Graph

_ROOT = Path(__file__).resolve().parent.parent
# Height and width that are measured, or as many rows of smaller images: enough memory to stand out
# from what a process takes and gives back by itself. The next one if the graph is too slow.
_SIDES = (512, 256, 128)
_SECONDS = 60.0


def bytes_per_pixel(graphs: dict[GraphName, bytes], manifest: Manifest) -> float:
    """Peak memory of an encoder or decoder, in bytes per pixel, of the one that takes more.

    Args:
        graphs: Content of the ONNX files by name of the graph; the priors are not measured.
        manifest: The model's manifest; only its shapes and sizes are read.

    Returns:
        The bytes by which the resident memory of a process grows while a batch is computed, for
        each pixel of each image; 0 if this system does not tell.
    """
    for side in _SIDES:
        height, width = _size(manifest, side)
        rows = max(1, side**2 // (height * width))
        shapes: dict[GraphName, tuple[int, ...]] = {
            "encoder": (rows, manifest.image_shape[0], height, width),
            "decoder": (rows, *manifest.latent_shape_of(height, width)),
        }
        grown = [_measure(graphs[name], shapes[name]) for name in shapes if name in graphs]
        if all(grown):
            return round(max(grown) / (rows * height * width), 1)
    return 0.0


def _size(manifest: Manifest, side: int) -> tuple[int, int]:
    """Height and width of an image of about `side` by `side` pixels that the model takes."""
    height, width = manifest.image_shape[1:]
    if manifest.sizes is None:
        return height, width
    step = manifest.sizes.multiple
    side = min(side, int(manifest.sizes.most_pixels**0.5)) // step * step
    return max(side, height), max(side, width)


def _measure(content: bytes, shape: Sequence[int]) -> int:
    """Growth in bytes while a graph is computed once; 0 if it cannot be measured."""
    with tempfile.TemporaryDirectory(prefix="latentserve-memory-") as folder:
        graph = Path(folder) / "graph.onnx"
        graph.write_bytes(content)
        command = [sys.executable, "-m", "export.memory", str(graph), json.dumps(list(shape))]
        try:
            done = subprocess.run(
                command, cwd=_ROOT, capture_output=True, timeout=_SECONDS, check=True
            )
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):
            return 0
    return int(done.stdout)


def main(path: str, shape: str) -> None:
    """Computes an encoder or decoder once, and prints by how many bytes the process grew."""
    x = np.random.default_rng(0).random(json.loads(shape), np.float32)
    graph = Graph(Path(path).read_bytes(), Device("cpu"), rows=len(x))
    inputs: dict[str, NDArray[Any]] = {graph.inputs[0]: x}
    if "label" in graph.inputs:
        inputs["label"] = np.zeros(len(x), np.int64)
    before = _status("VmRSS")
    try:
        # The peak since now: loading a graph may take more than computing it.
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        before = max(before, _status("VmHWM"))
    answers = graph.run(inputs)
    print(max(0, _status("VmHWM") - before) if answers else 0)


def _status(name: str) -> int:
    """A value in bytes of this process's status; 0 on systems other than Linux."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    found = [line.split()[1] for line in lines if line.startswith(f"{name}:")]
    return int(found[0]) * 1024 if found else 0


if __name__ == "__main__":
    main(*sys.argv[1:])
