"""Measures a run or a bundle on its test set, with one and the same code."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import open_bundle
from export.errors import ExportError
from service.runtime import Device, Graph
from training.datasets import binarize, load_dataset
from training.evaluation import (
    Autoencoder,
    Evaluation,
    ImportanceBound,
    evaluate,
    importance_bound,
)
from training.loop import as_autoencoder
from training.run import RunFolder
from training.train import TEST_SEED

Array = NDArray[np.float32]


def graphs_as_autoencoder(encoder: bytes, decoder: bytes) -> Autoencoder:
    """Wraps the two graphs for `training.evaluation`.

    Args:
        encoder: The encoder's ONNX file.
        decoder: The decoder's ONNX file.
    """
    encode_graph, decode_graph = (Graph(raw, Device("cpu")) for raw in (encoder, decoder))

    def encode(images: Array) -> tuple[Array, Array]:
        answers = encode_graph.run({"image": images})
        return answers["mean"], answers["log_var"]

    return Autoencoder(encode, lambda z: decode_graph.run({"z": z})["logits"])


@dataclass(frozen=True)
class Wanted:
    """What to measure.

    Attributes:
        draws: Draws of z per image for the ELBO.
        seed: Key of the draws. The bits of the test set are the same for every seed.
        importance: K of the importance-weighted bound; 0 for none.
        importance_images: How many test images to measure that bound on.
    """

    draws: int = 1
    seed: int = 0
    importance: int = 0
    importance_images: int = 1000


def evaluate_path(
    path: Path, wanted: Wanted, report: Callable[[str], None]
) -> tuple[str, Evaluation, ImportanceBound | None]:
    """Measures what is in a folder; never changes it.

    Args:
        path: A run folder (measured with torch) or a bundle, `MODELS/NAME/VERSION`
            (measured with onnxruntime).
        wanted: What to measure.
        report: Called with a line where the data has to be fetched.

    Returns:
        What was measured, in words, the ELBO and its parts, and the
        importance-weighted bound where it was wanted.

    Raises:
        ExportError: The folder is neither, or the data is not the one trained on.
        BundleError: The bundle is damaged.
        TrainingError: The run is damaged or the data cannot be had.
    """
    if (path / "manifest.json").is_file():
        bundle = open_bundle(path)
        what = f"bundle {bundle.manifest.name}/{bundle.manifest.version} (onnxruntime)"
        data, sha256 = bundle.manifest.dataset.name, bundle.manifest.dataset.sha256
        model = graphs_as_autoencoder(bundle.graphs["encoder"], bundle.graphs["decoder"])
    elif (path / "config.json").is_file():
        run = RunFolder(path)
        config = run.read_config()
        what = f"run {path} (torch)"
        if not run.complete:
            what += f", unfinished: step {run.steps_done()} of {config.total_steps}"
        data, sha256 = config.data, config.data_sha256
        model = as_autoencoder(run.load_model())
    else:
        raise ExportError(
            f"{path}: wanted a run folder (config.json) or a bundle MODELS/NAME/VERSION "
            "(manifest.json)"
        )
    dataset = load_dataset(data, report=report)
    if dataset.sha256 != sha256:
        raise ExportError(f"{data} here is not the data that {what} was trained on")
    images = binarize(dataset.test.images, TEST_SEED)
    result = evaluate(model, images, draws=wanted.draws, seed=wanted.seed)
    bound = None
    if wanted.importance:
        subset = images[: wanted.importance_images]
        bound = importance_bound(model, subset, draws=wanted.importance, seed=wanted.seed)
    return what, result, bound
