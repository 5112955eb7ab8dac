"""Test data of the graphs: parity inputs for the export, golden rows for every load by a server."""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import GraphName
from common import noise
from common.pixels import to_unit
from export.graphs import ExportedGraph
from export.verify import BATCHES, torch_answers
from training.data.targets import binarize

# Golden rows of a graph with images and of one without: images make up most of the file.
_IMAGE_ROWS = 8
_LATENT_ROWS = 32


def parity_inputs(
    graphs: Mapping[GraphName, ExportedGraph],
    golden: NDArray[np.uint8],
    golden_labels: NDArray[np.int64],
    labels: int,
) -> dict[GraphName, dict[str, NDArray[Any]]]:
    """Inputs of each graph for comparing torch and onnxruntime: rows of the largest batch.

    The images are the golden images, followed by binarized versions of them. Half of the latents
    are posterior means of these images, half are draws from the prior. An encoder or decoder that
    takes the class is given that of the image, and with draws from the prior every class in turn.

    Args:
        graphs: The exported graphs by name.
        golden: The golden images, uint8 [N, C, H, W].
        golden_labels: Their classes, int64 [N].
        labels: Number of classes the model, or its prior, can be conditioned on.
    """
    rows = max(BATCHES)
    images = [to_unit(golden)]
    while sum(map(len, images)) < rows:
        images.append(binarize(golden, seed=len(images)))
    conditional = "label" in graphs["decoder"].inputs
    encoded: dict[str, NDArray[Any]] = {
        "image": np.concatenate(images)[:rows],
        "label": np.resize(golden_labels, rows),
    }
    mean = torch_answers(graphs["encoder"], encoded)["mean"]
    # The prior of a conditional model is of all classes.
    of_prior = 0 if conditional else labels
    drawn: dict[str, NDArray[Any]] = {
        "eps": noise.standard_normal(0, 0, rows, mean.shape[1]),
        "u": noise.uniform(0, 0, rows),
        "label": np.arange(rows, dtype=np.int64) % (of_prior + 1) - 1,
    }
    z = drawn["eps"]
    if "prior" in graphs:
        z = torch_answers(graphs["prior"], drawn)["z"]
    half = rows // 2
    z = np.concatenate([mean[:half], z[half:]])
    each = np.arange(rows, dtype=np.int64) % max(1, labels)
    decoded = {"z": z, "label": np.concatenate([encoded["label"][:half], each[half:]])}
    inputs = {
        "encoder": encoded, "decoder": decoded, "prior": drawn, "prior_density": drawn | {"z": z}
    }  # fmt: skip
    return {
        name: {tensor: inputs[name][tensor] for tensor in graph.inputs}
        for name, graph in graphs.items()
    }


def golden_rows(
    graphs: Mapping[GraphName, ExportedGraph],
    inputs: Mapping[GraphName, Mapping[str, NDArray[Any]]],
) -> dict[str, NDArray[Any]]:
    """The first rows of each graph's inputs and torch's outputs for them, by "graph.tensor"."""
    golden: dict[str, NDArray[Any]] = {}
    for name, graph in graphs.items():
        rows = _IMAGE_ROWS if name in ("encoder", "decoder") else _LATENT_ROWS
        first = {tensor: inputs[name][tensor][:rows] for tensor in graph.inputs}
        tensors = first | torch_answers(graph, first)
        golden |= {f"{name}.{tensor}": array for tensor, array in tensors.items()}
    return golden


def golden_file(golden: Mapping[str, NDArray[Any]]) -> bytes:
    """Golden rows as the content of `golden.npz`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden)  # type: ignore[arg-type]
    return buffer.getvalue()
