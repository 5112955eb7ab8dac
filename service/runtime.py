"""onnxruntime, and the only place that knows it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from latentserve._cpus import usable_cpus
from service.errors import StartError

# From 1.29 on onnxruntime sends telemetry unless told otherwise before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

VERSION: str = onnxruntime.__version__

_CPU = "CPUExecutionProvider"
_CUDA = "CUDAExecutionProvider"

# Rows computed at a time. On a CPU no more than fit into its caches: 4096 rows of the
# flagship's decoder take 0.5 GiB and a quarter longer as one run, and a mixture of 256
# dimensions 3 GiB. What goes in and comes out is the same for any number.
_ROWS = {"cpu": 64, "cuda": 1024}


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
        self._rows = rows or _ROWS[device.kind]
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
        pieces = [
            self._session.run(
                wanted, {name: array[start : start + self._rows] for name, array in inputs.items()}
            )
            for start in range(0, count, self._rows)
        ]
        if len(pieces) == 1:
            return dict(zip(wanted, pieces[0], strict=True))
        joined = (np.concatenate(each) for each in zip(*pieces, strict=True))
        return dict(zip(wanted, joined, strict=True))


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
