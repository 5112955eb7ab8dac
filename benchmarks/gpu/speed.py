"""Images a second of a trained network, in the served graph and in torch on the same card.

The network is trained for a few steps on the device. Both compute its weights in full float32, and
both take and return NumPy arrays; a third figure leaves the arrays of torch on the card.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.gpu.pictures import dataset
from benchmarks.gpu.record import Figure, Record, Setting
from export.graphs import ExportedGraph, export_graphs
from export.variants import TOLERANCES
from service.models.onnx import Graph
from training.model.config import PriorConfig
from training.model.likelihood import resolve
from training.presets import find_preset
from training.trainer import Trainer

_SHAPE = (1, 28, 28)
_IMAGES = 2_000
_STEPS = 20
_BATCHES = (1, 64, 1024, 16_384)
_QUICK_BATCHES = (1, 64)
# Of each figure, after as many runs that do not count.
_SECONDS, _QUICK_SECONDS = 0.5, 0.05
_LEAST_RUNS = 3
_WARM_UPS = 2


def networks(setting: Setting) -> Iterator[Record]:
    """Measures encoders and decoders of `dense` and `conv`, 28 x 28 pixels, at several batches."""
    # As the server: TF32 costs three decimal digits.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    rng = np.random.default_rng(0)
    for network in ("dense",) if setting.quick else ("dense", "conv"):
        latent_dim, graphs = _trained(network, setting)
        for exported in graphs:
            for batch in _QUICK_BATCHES if setting.quick else _BATCHES:
                array = (
                    rng.random((batch, *_SHAPE), np.float32)
                    if exported.name == "encoder"
                    else rng.standard_normal((batch, latent_dim), np.float32)
                )
                title = f"{network}: {exported.name}, batch {batch}"
                try:
                    figures = _figures(exported, array, setting)
                except (MemoryError, torch.OutOfMemoryError):
                    yield Record(title, {"error": "the card has no memory for it"})
                    continue
                close = float(figures["difference"]) <= TOLERANCES[setting.device.kind]
                yield Record(title, figures, close)


def _trained(network: str, setting: Setting) -> tuple[int, list[ExportedGraph]]:
    """Trains a preset's network for a few steps and exports its encoder and decoder.

    Returns:
        The latent dimensions, and the graphs.
    """
    data = dataset(_IMAGES, _SHAPE)
    preset = resolve(find_preset(network), data.train.images)
    # The prior takes no part.
    model = dataclasses.replace(preset.model, prior=PriorConfig())
    trainer = Trainer(model, preset.train, data, _STEPS, device=torch.device(str(setting.device)))
    while trainer.step < trainer.total_steps:
        trainer.train_step()
    vae = trainer.ema_model.cpu().eval()
    return model.latent_dim, list(export_graphs(vae).values())


def _figures(
    exported: ExportedGraph, array: NDArray[np.float32], setting: Setting
) -> dict[str, Figure]:
    """Times a graph and its torch module on one batch, and compares their outputs."""
    device, (name,) = torch.device(str(setting.device)), exported.inputs
    graph = Graph(exported.content, setting.device, name=exported.name)
    # Sets the rows of one run, as loading does.
    graph.measure({name: array[:16]})
    module = exported.module.to(device)
    resident = torch.from_numpy(array).to(device)

    def served() -> dict[str, NDArray[np.float32]]:
        return graph.run({name: array})

    def in_torch() -> list[NDArray[np.float32]]:
        with torch.inference_mode():
            return [out.cpu().numpy() for out in module(torch.from_numpy(array).to(device))]

    def on_the_card() -> None:
        with torch.inference_mode():
            module(resident)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    got, wanted = served(), dict(zip(exported.outputs, in_torch(), strict=True))
    seconds = _QUICK_SECONDS if setting.quick else _SECONDS
    return {
        "onnxruntime, images/s": len(array) / median_seconds(served, seconds),
        "torch, images/s": len(array) / median_seconds(in_torch, seconds),
        "torch with arrays on the card, images/s": len(array)
        / median_seconds(on_the_card, seconds),
        # `np.max` keeps a NaN.
        "difference": float(np.max([_relative(got[key], wanted[key]) for key in wanted])),
    }


def _relative(got: NDArray[np.float32], wanted: NDArray[np.float32]) -> float:
    """Largest difference as a share of max(1, largest absolute value)."""
    return float(np.max(np.abs(got - wanted))) / max(1.0, float(np.max(np.abs(wanted))))


def median_seconds(run: Callable[[], object], seconds: float) -> float:
    """Median of the seconds of at least three runs, after two that do not count.

    Args:
        run: What is timed; it returns when the device has computed.
        seconds: How long it is repeated.
    """
    for _ in range(_WARM_UPS):
        run()
    took: list[float] = []
    while len(took) < _LEAST_RUNS or sum(took) < seconds:
        began = time.perf_counter()
        run()
        took.append(time.perf_counter() - began)
    return statistics.median(took)
