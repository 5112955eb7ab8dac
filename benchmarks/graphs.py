"""The model that every server serves, and its reference results from onnxruntime.

It is a dense VAE, 784-512-256-32, made by these commands and cached in `benchmarks/.cache`:

    latentserve train --preset dense --budget 20s --out benchmarks/.cache/run
    latentserve export benchmarks/.cache/run --to benchmarks/.cache/models/dense --samples 500
"""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.processes import CACHE, ROOT
from benchmarks.shapes import PIXELS, Shape, unit

# From 1.29 on onnxruntime sends telemetry unless this is set before its import.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import onnxruntime

# Largest allowed difference of float32 results, and of images in uint8.
_TOLERANCE = 1e-4
_STEP = 1


class WrongAnswer(Exception):
    """A server's reply differs from onnxruntime's result."""


def models() -> Path:
    """The models folder with `dense/1/`, which is trained and exported if missing."""
    folder = CACHE / "models"
    bundle = folder / "dense" / "1"
    if not (bundle / "manifest.json").exists():
        run = CACHE / "run"
        shutil.rmtree(run, ignore_errors=True)
        for command in (
            ["train", "--preset", "dense", "--budget", "20s", "--out", str(run)],
            ["export", str(run), "--to", str(bundle.parent), "--samples", "500"],
        ):
            subprocess.run([sys.executable, "-m", "latentserve", *command], cwd=ROOT, check=True)
    return folder


def graph(rpc: str) -> Path:
    """Path of the ONNX file for an RPC, `encode` or `decode`."""
    return models() / "dense" / "1" / f"{rpc}r.onnx"


class Reference:
    """Computes the expected results with onnxruntime, on one thread of this process."""

    @functools.cached_property
    def _sessions(self) -> dict[str, onnxruntime.InferenceSession]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        return {
            rpc: onnxruntime.InferenceSession(str(graph(rpc)), options, ["CPUExecutionProvider"])
            for rpc in ("encode", "decode")
        }

    def check(self, shape: Shape, answer: list[NDArray[Any]]) -> None:
        """Compares a server's reply with onnxruntime's result.

        Args:
            shape: Shape of the request.
            answer: The arrays of the reply, of any shape: mean and log_var float32 for `encode`,
                images float32 or uint8 for `decode`.

        Raises:
            WrongAnswer: The number, size or dtype of the arrays is wrong, or an element differs
                by more than rounding.
        """
        wanted = self._answer(shape)
        if len(answer) != len(wanted):
            raise WrongAnswer(f"{shape.name}: got {len(answer)} arrays, wanted {len(wanted)}")
        for got, want in zip(answer, wanted, strict=True):
            if got.size != want.size or got.dtype != want.dtype:
                raise WrongAnswer(
                    f"{shape.name}: got {got.dtype} {got.shape}, wanted {want.dtype} {want.shape}"
                )
            difference = np.abs(got.reshape(want.shape).astype(float) - want.astype(float)).max()
            if not difference <= (_STEP if want.dtype == np.uint8 else _TOLERANCE):
                raise WrongAnswer(f"{shape.name}: it differs from onnxruntime's by {difference:g}")

    def _answer(self, shape: Shape) -> list[NDArray[Any]]:
        array = shape.array()
        if shape.rpc == "encode":
            images = unit(array) if array.dtype == np.uint8 else array
            images = images.reshape(-1, 1, 28, 28)
            return list(self._sessions["encode"].run(["mean", "log_var"], {"image": images}))
        (images,) = self._sessions["decode"].run(["image"], {"z": array})
        images = images.reshape(-1, PIXELS)
        return [np.rint(images * 255).astype(np.uint8) if shape.dtype == "uint8" else images]
