"""A large picture, decoded by a model that others have made and `latentserve import` has read.

It is TAEF2 if LATENTSERVE_TAEF2 names its folder, else an AutoencoderTiny of diffusers with random
weights, which computes as much.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.parity import share_of_allowed
from benchmarks.gpu.record import Figure, Record, Setting
from benchmarks.gpu.speed import median_seconds
from benchmarks.processes import ROOT
from bundle import GraphName, open_bundle
from service.models.model import load_model
from service.models.onnx import Device, Graph

_SIZE, _QUICK_SIZE = 512, 32
_SECONDS, _QUICK_SECONDS = 3.0, 0.1
# Its images are twice as high and wide as its latents.
_TINY = {
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "num_encoder_blocks": (1, 1),
    "num_decoder_blocks": (1, 1),
}


def imported(setting: Setting) -> Iterator[Record]:
    """Imports a model, loads it on the device, and decodes and encodes a large picture."""
    source, name = _source(setting)
    model = setting.work / "models" / "imported"
    command = ["import", str(source), "--to", str(model), "--licence", "MIT"]
    if setting.quick:
        # Images of one size, so that none is compared at others.
        command += ["--size", str(_QUICK_SIZE)]
    subprocess.run(
        [sys.executable, "-m", "latentserve", *command], cwd=ROOT, check=True, stdout=sys.stderr
    )
    opened = open_bundle(model / "1")
    manifest = opened.manifest
    assert manifest.latent_shape is not None
    size = _QUICK_SIZE if setting.quick else _SIZE
    served = load_model(opened, setting.device)
    channels, height, _ = manifest.latent_shape
    side = size * height // manifest.image_shape[1]
    rng = np.random.default_rng(0)
    arrays: dict[GraphName, NDArray[np.float32]] = {
        "decoder": rng.standard_normal((1, channels, side, side), np.float32),
        "encoder": rng.random((1, 3, size, size), np.float32),
    }
    for title, array in arrays.items():
        if title not in served.graphs:
            # A decoder may come without its encoder.
            continue
        graph = served.graphs[title]
        run = partial(graph.run, {graph.inputs[0]: array}, size=(size, size))
        reference = Graph(opened.graphs[title], Device("cpu"), free=True)
        got, wanted = run(), reference.run({graph.inputs[0]: array})
        shares = [
            share_of_allowed(manifest, setting.device.kind, title, key, got, wanted) for key in got
        ]
        seconds = median_seconds(run, _QUICK_SECONDS if setting.quick else _SECONDS)
        figures: dict[str, Figure] = {
            "ms": 1e3 * seconds,
            "difference from the CPU / allowed": float(np.max(shares)),
        }
        yield Record(f"{name}: {title}, {size} x {size}", figures, bool(np.max(shares) <= 1))


def _source(setting: Setting) -> tuple[Path, str]:
    """What is imported, and its name."""
    if "LATENTSERVE_TAEF2" in os.environ and not setting.quick:
        return Path(os.environ["LATENTSERVE_TAEF2"]), "TAEF2"
    # Its classes have no types.
    diffusers: Any = importlib.import_module("diffusers")
    torch.manual_seed(0)
    folder = setting.work / "source"
    model = diffusers.AutoencoderTiny(**_TINY if setting.quick else {})
    model.save_pretrained(folder)
    return folder, "AutoencoderTiny, random weights"
