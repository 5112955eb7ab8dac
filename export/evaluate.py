"""Measures a run or a bundle on its test set, with one and the same code."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bundle import open_bundle
from export.errors import ExportError
from service.runtime import Device, Graph
from training.datasets import binarize, load_dataset
from training.evaluation import Autoencoder, Evaluation, evaluate
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


def evaluate_path(
    path: Path, draws: int, seed: int, report: Callable[[str], None]
) -> tuple[str, Evaluation]:
    """Measures what is in a folder; never changes it.

    Args:
        path: A run folder (measured with torch) or a bundle, `MODELS/NAME/VERSION`
            (measured with onnxruntime).
        draws: Draws of z per image.
        seed: Key of the draws. The bits of the test set are the same for every seed.
        report: Called with a line where the data has to be fetched.

    Returns:
        What was measured, in words, and the figures.

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
    return what, evaluate(model, images, draws=draws, seed=seed)
