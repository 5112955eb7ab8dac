"""onnxruntime, and the only place that knows it."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from service.errors import StartError

# From 1.29 on onnxruntime sends telemetry unless told otherwise before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

VERSION: str = onnxruntime.__version__

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Most rows computed at a time. On a CPU no more than fit into its caches: 4096 rows of the
# flagship's decoder take 0.5 GiB and a quarter longer as one run, and a mixture of 256
# dimensions 3 GiB. What goes in and comes out is the same for any number.
_ROWS = {"cpu": 64, "cuda": 1024}
_MOST_ROWS = {"cpu": 512, "cuda": 4096}
# A batch keeps others waiting: what it has of one call, and of all, is to take about so long,
# but for graphs of which even the fewest rows that fill a core take longer.
_TURN_SECONDS = 0.002
_BATCH_SECONDS = 0.008
_FEWEST_ROWS = {"cpu": 16, "cuda": 64}
_TRIAL_ROWS = 16
_TRIALS = 5


@dataclass(frozen=True)
class Device:
    """Where graphs run.

    Attributes:
        kind: `cpu` or `cuda`.
        index: Which GPU.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def resolve_device(wanted: str) -> Device:
    """Turns a setting into a device that is there.

    Args:
        wanted: `cpu`, `cuda`, `cuda:1`, or `auto`, which takes CUDA where this
            onnxruntime can use it and the CPU else.

    Raises:
        StartError: It is none of these, or CUDA was asked for and is not there:
            onnxruntime itself would warn once and run on the CPU.
    """
    match = re.fullmatch(r"auto|cpu|cuda(?::(\d{1,3}))?", wanted)
    if match is None:
        raise StartError(f"device: got {wanted!r}, wanted auto, cpu, cuda or cuda:N")
    if wanted == "cpu":
        return Device("cpu")
    device = Device("cuda", int(match[1] or 0))
    problem = device_problem(device)
    if problem is None:
        return device
    if wanted == "auto":
        return Device("cpu")
    raise StartError(
        f"device: got {wanted}, but {problem}. Remedy: --device cpu, or --device auto to use "
        "CUDA only where it is there"
    )


class Graph:
    """One ONNX graph, loaded and ready.

    Args:
        content: The ONNX file's bytes, already verified.
        device: Where to run it.
        threads: Threads a run may use; 0 for as many as this process has CPUs.
        rows: Most rows to compute at a time; 0 for as many as suit the device.
        name: What it does, for metrics and the log.

    Attributes:
        name: As given.
        device: Where it really runs.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        batch_rows: Most rows that should be given to it at once.
        turn_rows: Most rows of one call among them.

    Raises:
        StartError: The device was not taken, for example CUDA out of memory.
        Exception: onnxruntime refuses the graph.
    """

    def __init__(
        self, content: bytes, device: Device, threads: int = 0, rows: int = 0, name: str = ""
    ):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Batches come in every size: a memory pattern per size would only pile up.
        options.enable_mem_pattern = False
        # A waiting thread must not burn a core that others share.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
        used = self._session.get_providers()[0]
        if used != _providers(device)[0][0]:
            raise StartError(f"device: wanted {device}, but onnxruntime fell back to {used}")
        self.name = name
        self.device = device
        self._rows = self.batch_rows = self.turn_rows = rows or _ROWS[device.kind]
        self._pads = device.kind == "cuda"
        self._seconds = (math.inf, 0.0)
        self.inputs = tuple(each.name for each in self._session.get_inputs())
        self.outputs = tuple(each.name for each in self._session.get_outputs())

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """Runs the graph; releases the GIL while it does.

        Args:
            inputs: Arrays by the names of the graph's inputs, as many rows in each.
            outputs: Names of the outputs wanted; all by default.

        Returns:
            Arrays by the names of the outputs.
        """
        wanted = list(outputs or self.outputs)
        count = len(next(iter(inputs.values())))
        if count <= self._rows:
            return dict(zip(wanted, self._run(wanted, inputs, count), strict=True))
        pieces = []
        for start in range(0, count, self._rows):
            piece = {name: array[start : start + self._rows] for name, array in inputs.items()}
            pieces.append(self._run(wanted, piece, min(self._rows, count - start)))
        joined = (np.concatenate(each) for each in zip(*pieces, strict=True))
        return dict(zip(wanted, joined, strict=True))

    def seconds(self, rows: int) -> float:
        """About how long so many rows take; for ever, as long as nobody has measured it."""
        base, each = self._seconds
        return base + rows * each

    def measure(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Finds out how long rows take, and how many to compute at once.

        Args:
            inputs: Some rows that the graph takes.
        """
        few, many = (self._timed(inputs, rows) for rows in (1, _TRIAL_ROWS))
        each = max((many - few) / (_TRIAL_ROWS - 1), 1e-9)
        self._seconds = max(few - each, 0.0), each
        self.turn_rows = self._rows_in(_TURN_SECONDS, each)
        self._rows = self.batch_rows = self._rows_in(_BATCH_SECONDS, each)

    def _rows_in(self, seconds: float, each: float) -> int:
        rows = 1 << int(math.log2(max(1.0, seconds / each)))
        return min(_MOST_ROWS[self.device.kind], max(_FEWEST_ROWS[self.device.kind], rows))

    def _timed(self, inputs: Mapping[str, NDArray[Any]], rows: int) -> float:
        taken = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
        shortest = math.inf
        for _ in range(_TRIALS):
            began = time.perf_counter()
            self.run(taken)
            shortest = min(shortest, time.perf_counter() - began)
        return shortest

    def _run(
        self, wanted: list[str], inputs: Mapping[str, NDArray[Any]], count: int
    ) -> list[NDArray[np.float32]]:
        if not self._pads:
            return self._session.run(wanted, dict(inputs))  # type: ignore[no-any-return]
        # A GPU's libraries choose their algorithms anew for every shape they meet: let them
        # meet few.
        rows = min(self._rows, max(_FEWEST_ROWS[self.device.kind], 1 << (count - 1).bit_length()))
        padded = {name: _padded(array, rows) for name, array in inputs.items()}
        return [array[:count] for array in self._session.run(wanted, padded)]


def _padded(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """Repeats the last row: it is sound, where zeros might not be."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _providers(device: Device) -> list[tuple[str, dict[str, str]]]:
    if device.kind == "cpu":
        return [(_CPU, {})]
    # TF32 would cost three decimal digits, unasked.
    return [(_CUDA, {"device_id": str(device.index), "use_tf32": "0"}), (_CPU, {})]


def device_problem(device: Device) -> str | None:
    """Why a device cannot be used, or None where a tiny graph really ran on it."""
    if device.kind == "cuda" and _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA (wanted the package onnxruntime-gpu)"
    try:
        Graph(_PROBE, device, threads=1).run({"x": np.zeros(1, np.float32)})
    except StartError:
        return "onnxruntime fell back to the CPU (wanted a GPU and CUDA libraries it can load)"
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
        return f"it does not work here: {error}"
    return None


# The graph y = Identity(x) over float32 [1], as ONNX bytes: onnx itself is no
# dependency of the server.
_PROBE = bytes.fromhex(
    "08083a3b0a100a017812017922084964656e74697479120570726f62655a0f0a0178120a0a08080112040a0208"
    "01620f0a0179120a0a08080112040a02080142040a001012"
)
