"""Devices and graphs of onnxruntime; the only module of the service that imports it."""

import math
import os
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from service.errors import StartError
from service.models.alignment import aligned
from service.models.speed import SLOW_SECONDS, ImageSize, Limits, Speed

# From 1.29 on onnxruntime sends telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

VERSION: str = onnxruntime.__version__

# Above the severity of errors: that a run was terminated is not worth a line.
_SILENT = 4
# Options of a run that computes nothing and returns its session's unused memory to the system.
_RELEASE = onnxruntime.RunOptions()
_RELEASE.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
_RELEASE.terminate = True
_RELEASE.log_severity_level = _SILENT

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Lack of memory in onnxruntime's messages; its exception types do not distinguish it.
_NO_MEMORY = re.compile(r"bad.alloc|failed to allocate memory|out of memory|ALLOC_FAILED", re.I)
# Measuring a graph takes at most about a second: a time is the fastest of at most `_TRIALS` runs,
# none of which starts after `_TRIAL_SECONDS`. Larger images are tried until a row is slow.
_TRIAL_ROWS = 16
_TRIALS = 5
_TRIAL_SECONDS = 0.1
# Sizes of which a graph keeps the limits.
_MAX_SIZES = 1024


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
    """One ONNX graph, in an onnxruntime session or two.

    The main session runs on `threads` threads. If rows of some size are found slow, a second
    session on `slow_threads` threads runs these.

    Args:
        content: The ONNX file's bytes, already verified.
        device: Device to run on.
        threads: Threads for one run; 0 for all CPUs of this process.
        rows: Maximum rows of one run until `measure`; 0 for the device's default.
        name: Name in metrics and the log.
        slow_threads: Threads for one run of a slow row; 0 for as many as for the others.
        speed: Estimates the time of runs; None for one without limits of its own.
        free: Whether images have any size.

    Attributes:
        name: Name in metrics and the log.
        device: Device that it runs on.
        inputs: Names of its inputs.
        outputs: Names of its outputs.

    Raises:
        StartError: onnxruntime fell back to another execution provider, for example because
            the GPU is out of memory.
        Exception: onnxruntime cannot load the graph.
    """

    def __init__(
        self,
        content: bytes,
        device: Device,
        threads: int = 0,
        rows: int = 0,
        name: str = "",
        *,
        slow_threads: int = 0,
        speed: Speed | None = None,
        free: bool = False,
    ):
        self.name = name
        self.device = device
        self._content = content
        self._free = free
        self._threads = threads or usable_cpus()
        # More threads do not speed up what a GPU computes.
        self._slow_threads = slow_threads if device.kind == "cpu" else 0
        self._session = self._slow_session = self._open(self._threads)
        self._speed = speed or Speed(device.kind, default_rows=rows)
        self._limits: dict[ImageSize, Limits] = {}
        # A row of the golden size, once it was measured.
        self._row: dict[str, NDArray[Any]] = {}
        self.inputs = tuple(node.name for node in self._session.get_inputs())
        self.outputs = tuple(node.name for node in self._session.get_outputs())

    def _open(self, threads: int) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # onnxruntime would keep a memory pattern for every batch size, and there are hundreds.
        options.enable_mem_pattern = False
        # A waiting thread must not spin on a core that others share.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        device = self.device
        providers = _providers(device, free=self._free)
        session = onnxruntime.InferenceSession(self._content, options, providers=providers)
        used = session.get_providers()[0]
        if used != providers[0][0]:
            raise StartError(f"device: wanted {device}, but onnxruntime fell back to {used}")
        return session

    def run(
        self,
        inputs: Mapping[str, NDArray[Any]],
        outputs: Sequence[str] = (),
        size: ImageSize = (),
        options: onnxruntime.RunOptions | None = None,
    ) -> dict[str, NDArray[np.float32]]:
        """Runs the graph, a limited number of rows at a time, with the GIL released.

        Args:
            inputs: Arrays [N, ...] by the names of the graph's inputs.
            outputs: Names of the outputs to compute; all by default.
            size: ImageSize of the images.
            options: From `run_options`: setting their `terminate` in another thread ends the run.

        Returns:
            Arrays [N, ...] by the names of the outputs.
        """
        wanted = list(outputs or self.outputs)
        count = len(next(iter(inputs.values())))
        limits = self.limits(size)
        rows = limits.batch_rows
        if count <= rows:
            return dict(zip(wanted, self._run(wanted, inputs, count, limits, options), strict=True))
        pieces = []
        for start in range(0, count, rows):
            piece = {name: array[start : start + rows] for name, array in inputs.items()}
            pieces.append(self._run(wanted, piece, min(rows, count - start), limits, options))
        joined = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
        return dict(zip(wanted, joined, strict=True))

    def run_options(self) -> onnxruntime.RunOptions:
        """Makes options for one call of `run`."""
        options = onnxruntime.RunOptions()
        options.log_severity_level = _SILENT
        return options

    def run_slow(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[np.float32]]:
        """Runs the graph in the session for slow rows, whatever the rows' size."""
        answers = self._run_session(self._slow_session, list(self.outputs), dict(inputs))
        return dict(zip(self.outputs, answers, strict=True))

    def limits(self, size: ImageSize = ()) -> Limits:
        """The batch limits for images of a size."""
        limits = self._limits.get(size)
        if limits is None:
            if len(self._limits) >= _MAX_SIZES:
                self._limits = {}
            limits = self._limits[size] = self._speed.limits(math.prod(size) if size else 0)
        return limits

    def measure(self, inputs: Mapping[str, NDArray[Any]], max_pixels: int = 0) -> bool:
        """Measures how long runs take, for `limits`; opens a session for slow rows if need be.

        Args:
            inputs: Arrays of a few valid rows of the golden size, by the names of the inputs.
            max_pixels: Maximum pixels of an image; 0 if all have the golden size.

        Returns:
            Whether it has opened a session for slow rows.
        """
        self._row = {name: array[:1] for name, array in inputs.items()}
        one = self._time(inputs, 1)
        rows = min(_TRIAL_ROWS, int(_TRIAL_SECONDS / one), self._speed.most_rows)
        many = self._time(inputs, rows) if rows > 1 else one
        self._speed.measured(one, many, max(rows, 1))
        pixels, row = self._speed.pixels, self._speed.row_seconds(self._speed.pixels)
        while 4 * pixels <= max_pixels and row <= SLOW_SECONDS:
            inputs = {name: _doubled(array[:1]) for name, array in inputs.items()}
            pixels *= 4
            self._speed.measured_larger(pixels, self._time(inputs, 1))
            row = self._speed.row_seconds(pixels)
        self._limits = {}
        self.release_memory()
        slow = self._speed.row_seconds(max(max_pixels, self._speed.pixels)) > SLOW_SECONDS
        opens = slow and self._slow_threads > self._threads
        if opens:
            self._slow_session = self._open(self._slow_threads)
            if self.limits().slow or self._speed.most_rows == 1:
                # One session does: most rows are slow, or not equal to the bit in both.
                self._session = self._slow_session
        self._content = b""
        return opens

    def release_memory(self) -> None:
        """Returns memory that earlier runs took to the system; later runs take it again.

        Not after every run: a tenth of the time of a large row is that of taking its memory.
        """
        if self.device.kind != "cpu" or not self._row:
            return
        for session in {self._session, self._slow_session}:
            # onnxruntime reports the end of a run that was terminated as an error.
            with suppress(Exception):
                session.run(None, self._row, _RELEASE)

    def _time(self, inputs: Mapping[str, NDArray[Any]], rows: int) -> float:
        """Time of the fastest of a few runs of `rows` rows, in seconds."""
        trial = {name: np.resize(array, (rows, *array.shape[1:])) for name, array in inputs.items()}
        outputs = list(self.outputs)
        if self.device.kind == "cuda":
            # The first run of a shape chooses algorithms.
            self._run_session(self._session, outputs, trial)
        fastest, total = math.inf, 0.0
        for _ in range(_TRIALS):
            began = time.perf_counter()
            self._run_session(self._session, outputs, trial)
            seconds = time.perf_counter() - began
            fastest, total = min(fastest, seconds), total + seconds
            if total > _TRIAL_SECONDS:
                break
        return fastest

    def _run(
        self,
        wanted: list[str],
        inputs: Mapping[str, NDArray[Any]],
        count: int,
        limits: Limits,
        options: onnxruntime.RunOptions | None,
    ) -> list[NDArray[np.float32]]:
        session = self._slow_session if limits.slow else self._session
        if self._speed.most_rows == 1:
            # An operator whose bits depend on a row's place in a batch may depend on its address.
            inputs = {name: aligned(array) for name, array in inputs.items()}
        if limits.least_rows == 1:
            return self._run_session(session, wanted, dict(inputs), options)
        # CUDA's libraries choose algorithms for every new shape, so rows are padded to few sizes.
        rows = min(limits.batch_rows, max(limits.least_rows, 1 << (count - 1).bit_length()))
        padded = {name: _padded(array, rows) for name, array in inputs.items()}
        return [array[:count] for array in self._run_session(session, wanted, padded, options)]

    def _run_session(
        self,
        session: onnxruntime.InferenceSession,
        wanted: list[str],
        inputs: dict[str, NDArray[Any]],
        options: onnxruntime.RunOptions | None = None,
    ) -> list[NDArray[np.float32]]:
        try:
            return session.run(wanted, inputs, options)  # type: ignore[no-any-return]
        except Exception as error:
            if _NO_MEMORY.search(str(error)):
                raise MemoryError(f"{self.name} on {self.device}") from error
            raise


def _doubled(array: NDArray[Any]) -> NDArray[Any]:
    """Repeats images or spatial latents along height and width."""
    return np.tile(array, (1, 1, 2, 2)) if array.ndim == 4 else array


def _padded(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """Pads an array with copies of its last row, which are valid inputs, unlike zeros."""
    missing = rows - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _providers(device: Device, *, free: bool) -> list[tuple[str, dict[str, str]]]:
    if device.kind == "cpu":
        return [(_CPU, {})]
    # TF32, on by default, costs three decimal digits.
    options = {"device_id": str(device.index), "use_tf32": "0"}
    if free:
        # By default all algorithms are tried out for every new size.
        options["cudnn_conv_algo_search"] = "HEURISTIC"
    return [(_CUDA, options), (_CPU, {})]


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
