"""Whether rows have the same bits in every batch: what decides how a server may batch them."""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from bundle import GraphName, Manifest, Sizes
from export.errors import ExportError
from service.models.alignment import copy_at
from service.models.onnx import Device, Graph
from service.models.speed import SLOW_SECONDS

Inputs = Mapping[str, NDArray[Any]]

#: Batch sizes that are compared, beside all rows at once.
BATCHES = (1, 2, 3, 8)
#: Threads of a run; 0 for all CPUs.
_THREADS = (1, 2, 0)
# Bytes by which a buffer starts after a multiple of 64. Every one is a multiple of 4, as NumPy's
# own buffers are.
_OFFSETS = (0, 4, 16, 36)
# Time of one row, about, of the largest size that is tried, and its largest height and width.
_TRIAL_SECONDS = 0.05
_TRIAL_PIXELS = 256


@dataclass(frozen=True)
class RowLimit:
    """How many rows of a model a server may compute at once.

    Attributes:
        rows: `Manifest.rows_at_once`: 0 for no limit, or 1.
        bit_invariant: Whether rows have the same bits in every batch.
        reason: Why the limit is 1; empty if it is 0.
    """

    rows: int
    bit_invariant: bool
    reason: str = ""


def measure_rows(
    graphs: Mapping[GraphName, bytes],
    cases: Mapping[GraphName, Sequence[Inputs]],
    seconds: Mapping[GraphName, float] | None = None,
) -> RowLimit:
    """Measures whether the rows of a model may be computed in batches.

    Args:
        graphs: Content of the ONNX files by name of the graph.
        cases: For each graph, inputs by name, of several rows each; one case for each size that
            is tried, the golden size first.
        seconds: For each graph, what `row_seconds` measured for the golden size; None to measure it
            here.
    """
    for name, content in graphs.items():
        reason = _uneven_normalization(name, content)
        reason = reason or next(filter(None, _differences(name, content, cases[name])), "")
        if reason:
            return RowLimit(1, bit_invariant=False, reason=reason)
    for name, content in graphs.items():
        row = row_seconds(content, cases[name][0]) if seconds is None else seconds[name]
        if row > SLOW_SECONDS:
            reason = f"{name}: a row takes {row:.2f} s, which gains nothing from a batch"
            return RowLimit(1, bit_invariant=True, reason=reason)
    return RowLimit(0, bit_invariant=True)


def _differences(name: str, content: bytes, cases: Sequence[Inputs]) -> Iterator[str]:
    return (find_difference(name, content, inputs) for inputs in cases)


def check_batch_invariance(name: str, content: bytes, inputs: Inputs) -> None:
    """Checks on the CPU that a row's bits do not depend on its batch, threads or alignment.

    Seeded sampling relies on this.

    Args:
        name: Name of the graph, for the error.
        content: Content of the ONNX file.
        inputs: Inputs by name, with equal numbers of rows.

    Raises:
        ExportError: The bits of a row differ.
    """
    if difference := find_difference(name, content, inputs):
        raise ExportError(difference)


def find_difference(name: str, content: bytes, inputs: Inputs) -> str:
    """Compares the bits of rows in batches of several sizes, on several numbers of threads.

    Inputs start at addresses of several alignments.

    Args:
        name: Name of the graph.
        content: Content of the ONNX file.
        inputs: Inputs by name, with equal numbers of rows.

    Returns:
        The first output whose rows differ, and where; empty if all are equal.
    """
    count = len(next(iter(inputs.values())))
    whole = Graph(content, Device("cpu"), rows=count).run(inputs)
    offsets = itertools.cycle(_OFFSETS)
    for threads in _THREADS:
        session = Graph(content, Device("cpu"), threads, rows=count)
        for batch in sorted({*BATCHES, count}):
            for start in range(0, count, batch):
                chunk, offset = slice(start, start + batch), next(offsets)
                answers = session.run(
                    {key: copy_at(offset, array[chunk]) for key, array in inputs.items()}
                )
                for output, rows in whole.items():
                    if answers[output].tobytes() != rows[chunk].tobytes():
                        return (
                            f"{name}.{output}: rows differ between batches of {batch} and of "
                            f"{count}"
                        )
    return ""


def golden_case(name: GraphName, manifest: Manifest) -> Inputs:
    """Random inputs of an encoder or decoder: one row of the golden size.

    Args:
        name: `encoder` or `decoder`.
        manifest: The model's manifest; only its shapes and sizes are read.
    """
    return _random(name, manifest, manifest.image_shape[1:], 1)


def size_cases(
    name: GraphName,
    content: bytes,
    manifest: Manifest,
    rows: int = max(BATCHES),
    seconds: float | None = None,
) -> list[Inputs]:
    """Random inputs of an encoder or decoder at the sizes that are tried.

    Args:
        name: `encoder` or `decoder`.
        content: Content of the ONNX file.
        manifest: The model's manifest; only its shapes and sizes are read.
        rows: Rows of each case.
        seconds: What `row_seconds` measured for the golden size; None to measure it here.

    Returns:
        One case for a model of fixed size; three for one of free size, the golden size first.
    """
    _, *golden = manifest.image_shape
    sizes = [(golden[0], golden[1])]
    if manifest.sizes is not None:
        pixels = golden[0] * golden[1]
        if seconds is None:
            seconds = row_seconds(content, golden_case(name, manifest))
        sizes += trial_sizes(manifest.sizes, int(_TRIAL_SECONDS / max(seconds, 1e-5) * pixels))
    return [_random(name, manifest, size, rows) for size in sizes]


def trial_sizes(sizes: Sizes, pixels: int) -> list[tuple[int, int]]:
    """Two more heights and widths to try: one odd in both, as latents, and a large one.

    Args:
        sizes: The sizes that the model takes.
        pixels: About the largest height times width that is worth its time.
    """
    step = sizes.multiple
    odd = max(3, sizes.least // step) | 1
    side = min(_TRIAL_PIXELS, int(min(pixels, sizes.most_pixels) ** 0.5)) // step
    large = max(side, odd + 1)
    tried = [(odd * step, (odd + 2) * step), (large * step, (large + 1) * step)]
    return [(height, width) for height, width in tried if height * width <= sizes.most_pixels]


def _random(name: GraphName, manifest: Manifest, size: tuple[int, int], rows: int) -> Inputs:
    rng = np.random.default_rng(0)
    if name == "encoder":
        channels = manifest.image_shape[0]
        return {"image": rng.random((rows, channels, *size), np.float32)}
    return {"z": rng.standard_normal((rows, *manifest.latent_shape_of(*size)), np.float32)}


def row_seconds(content: bytes, inputs: Inputs) -> float:
    """CPU time of one row, in seconds; the faster of two runs."""
    session = Graph(content, Device("cpu"), threads=1)
    one = {name: array[:1] for name, array in inputs.items()}
    seconds = []
    for _ in range(2):
        # CPU time, so that it is the same on a machine with other work: the one thread is this one.
        began = time.thread_time()
        session.run(one)
        seconds.append(time.thread_time() - began)
    return min(seconds)


def _uneven_normalization(name: str, content: bytes) -> str:
    """A normalization over a number of channels whose sums depend on alignment; else empty.

    onnxruntime's InstanceNormalization and GroupNormalization add the values of a channel in an
    order that depends on where in memory it starts, unless there are a multiple of 4 channels.
    """
    graph = onnx.load_from_string(content).graph
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type in ("InstanceNormalization", "GroupNormalization"):
            channels = shapes.get(node.input[1], (1,))[0]
            if channels % 4:
                return f"{name}: {node.op_type} of {channels} channels, not a multiple of 4"
    return ""
