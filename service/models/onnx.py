"""Devices and graphs of onnxruntime; the only module of the service that imports it."""

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

# From 1.29 on onnxruntime sends telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

VERSION: str = onnxruntime.__version__

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Maximum rows of one run: until calibration, and after it. On a CPU, larger runs exceed the caches:
# as one run, 4096 rows of the flagship's decoder take 0.5 GiB and 25% longer, and 4096 rows of a
# mixture prior of 256 dimensions take 3 GiB. Outputs do not depend on these limits.
_DEFAULT_ROWS = {"cpu": 64, "cuda": 1024}
_MAX_ROWS = {"cpu": 512, "cuda": 4096}
# A running batch delays the calls behind it. So calibration limits the rows of one call in a batch,
# and of the whole batch, to what is computed in about this time, but never to fewer than
# `_MIN_ROWS`, which a core or GPU needs to work at full speed.
_CALL_SECONDS = 0.002
_BATCH_SECONDS = 0.008
_MIN_ROWS = {"cpu": 16, "cuda": 64}
# Lack of memory in onnxruntime's messages; its exception types do not distinguish it.
_NO_MEMORY = re.compile(r"bad.alloc|failed to allocate memory|out of memory|ALLOC_FAILED", re.I)
_TRIAL_ROWS = 16
_TRIALS = 5


@dataclass(frozen=True)
class Device:
    """A device that runs graphs.

    Attributes:
        kind: `cpu` or `cuda`.
        index: Index of the GPU; 0 for a CPU.
    """

    kind: Literal["cpu", "cuda"]
    index: int = 0

    def __str__(self) -> str:
        return "cpu" if self.kind == "cpu" else f"cuda:{self.index}"


def resolve_device(wanted: str) -> Device:
    """Returns the device that a setting selects; CUDA is tested by running a graph on it.

    Args:
        wanted: `cpu`, `cuda`, `cuda:1`, or `auto`: CUDA if this onnxruntime can use it, else
            the CPU.

    Raises:
        StartError: The setting is invalid, or CUDA was requested explicitly and does not work.
            onnxruntime itself would only warn, and run on the CPU.
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
        "CUDA only where it is available"
    )


class Graph:
    """One ONNX graph in an onnxruntime session.

    Args:
        content: The ONNX file's bytes, already verified.
        device: Device to run on.
        threads: Threads for one run; 0 for all CPUs of this process.
        rows: Maximum rows of one run until `calibrate`; 0 for the device's default.
        name: Name in metrics and the log.

    Attributes:
        name: Name in metrics and the log.
        device: Device that it runs on.
        inputs: Names of its inputs.
        outputs: Names of its outputs.
        max_batch_rows: Maximum rows in one batch.
        max_call_rows: Maximum rows of one call in a batch.

    Raises:
        StartError: onnxruntime fell back to another execution provider, for example because
            the GPU is out of memory.
        Exception: onnxruntime cannot load the graph.
    """

    def __init__(
        self, content: bytes, device: Device, threads: int = 0, rows: int = 0, name: str = ""
    ):
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or usable_cpus()
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # onnxruntime would keep a memory pattern for every batch size, and there are hundreds.
        options.enable_mem_pattern = False
        # A waiting thread must not spin on a core that others share.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._session = onnxruntime.InferenceSession(content, options, providers=_providers(device))
        used = self._session.get_providers()[0]
        if used != _providers(device)[0][0]:
            raise StartError(f"device: wanted {device}, but onnxruntime fell back to {used}")
        self.name = name
        self.device = device
        self._run_rows = rows or _DEFAULT_ROWS[device.kind]
        self.max_batch_rows = self.max_call_rows = self._run_rows
        self._pads = device.kind == "cuda"
        # Estimated time in seconds: a fixed part per run, plus a part per row.
        self._run_seconds, self._row_seconds = math.inf, 0.0
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def run(
        self, inputs: Mapping[str, NDArray[Any]], outputs: Sequence[str] = ()
    ) -> dict[str, NDArray[np.float32]]:
        """Runs the graph, a limited number of rows at a time, with the GIL released.

        Args:
            inputs: Arrays [N, ...] by the names of the graph's inputs.
            outputs: Names of the outputs to compute; all by default.

        Returns:
            Arrays [N, ...] by the names of the outputs.
        """
        wanted = list(outputs or self.outputs)
        count = len(next(iter(inputs.values())))
        if count <= self._run_rows:
            return dict(zip(wanted, self._run(wanted, inputs, count), strict=True))
        pieces = []
        for start in range(0, count, self._run_rows):
            piece = {name: array[start : start + self._run_rows] for name, array in inputs.items()}
            pieces.append(self._run(wanted, piece, min(self._run_rows, count - start)))
        joined = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return dict(zip(wanted, joined, strict=True))

    def estimate_seconds(self, rows: int) -> float:
        """Expected time to compute a number of rows, in seconds; infinite before `calibrate`."""
        return self._run_seconds + rows * self._row_seconds

    def calibrate(self, inputs: Mapping[str, NDArray[Any]]) -> None:
        """Measures how long runs take, and sets `max_call_rows` and `max_batch_rows` accordingly.

        Args:
            inputs: Arrays of a few valid rows, by the names of the graph's inputs.
        """
        one, many = (self._measure(inputs, rows) for rows in (1, _TRIAL_ROWS))
        self._row_seconds = max((many - one) / (_TRIAL_ROWS - 1), 1e-9)
        self._run_seconds = max(one - self._row_seconds, 0.0)
        self.max_call_rows = self._rows_within(_CALL_SECONDS)
        self._run_rows = self.max_batch_rows = self._rows_within(_BATCH_SECONDS)

    def _rows_within(self, seconds: float) -> int:
        """Largest power of two of rows whose run should take at most `seconds`, within bounds.

        The bounds are `_MIN_ROWS` and `_MAX_ROWS` of the device.
        """
        rows = 1 << int(math.log2(max(1.0, seconds / self._row_seconds)))
        return min(_MAX_ROWS[self.device.kind], max(_MIN_ROWS[self.device.kind], rows))

    def _measure(self, inputs: Mapping[str, NDArray[Any]], rows: int) -> float:
        """Time of the fastest of a few runs of `rows` rows, in seconds."""
        trial = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
        fastest = math.inf
        for _ in range(_TRIALS):
            began = time.perf_counter()
            self.run(trial)
            fastest = min(fastest, time.perf_counter() - began)
        return fastest

    def _run(
        self, wanted: list[str], inputs: Mapping[str, NDArray[Any]], count: int
    ) -> list[NDArray[np.float32]]:
        if not self._pads:
            return self._run_session(wanted, dict(inputs))
        # CUDA's libraries choose algorithms for every new shape, so rows are padded to few sizes.
        rows = min(self._run_rows, max(_MIN_ROWS[self.device.kind], 1 << (count - 1).bit_length()))
        padded = {name: _padded(array, rows) for name, array in inputs.items()}
        return [array[:count] for array in self._run_session(wanted, padded)]

    def _run_session(
        self, wanted: list[str], inputs: dict[str, NDArray[Any]]
    ) -> list[NDArray[np.float32]]:
        try:
            return self._session.run(wanted, inputs)  # type: ignore[no-any-return]
        except Exception as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(f"{self.name} on {self.device}") from error
            raise


def _padded(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """Pads an array with copies of its last row, which are valid inputs, unlike zeros."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _providers(device: Device) -> list[tuple[str, dict[str, str]]]:
    if device.kind == "cpu":
        return [(_CPU, {})]
    # TF32, on by default, costs three decimal digits.
    return [(_CUDA, {"device_id": str(device.index), "use_tf32": "0"}), (_CPU, {})]


def device_problem(device: Device) -> str | None:
    """Returns why a device cannot be used, or None if a tiny graph ran on it."""
    if device.kind == "cuda" and _CUDA not in onnxruntime.get_available_providers():
        return "this onnxruntime has no CUDA (wanted the package onnxruntime-gpu)"
    try:
        Graph(_PROBE, device, threads=1).run({"x": np.zeros(1, np.float32)})
    except StartError:
        return "onnxruntime fell back to the CPU (wanted a GPU and CUDA libraries it can load)"
    except Exception as error:  # noqa: BLE001 - onnxruntime's errors have no common base
        return f"it does not work here: {error}"
    return None


# The graph y = Identity(x), float32 [1], as an ONNX file: the server does not depend on onnx.
_PROBE = bytes.fromhex(
    "08083a3b0a100a017812017922084964656e74697479120570726f62655a0f0a0178120a0a08080112040a0208"
    "01620f0a0179120a0a08080112040a02080142040a001012"
)
