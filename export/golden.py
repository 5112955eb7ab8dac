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
    graphs: Mapping[GraphName, ExportedGraph], golden: NDArray[np.uint8], labels: int
) -> dict[str, NDArray[Any]]:
    """Inputs by name for comparing torch and onnxruntime, as many rows as the largest batch.

    The images are the golden images, followed by binarized versions of them. Half of the latents
    are posterior means of these images, half are draws from the prior.

    Args:
        graphs: The exported graphs by name.
        golden: The golden images, uint8 [N, C, H, W].
        labels: Number of classes the prior can be conditioned on.
    """
    rows = max(BATCHES)
    images = [to_unit(golden)]
    while sum(map(len, images)) < rows:
        images.append(binarize(golden, seed=len(images)))
    image = np.concatenate(images)[:rows]
    mean = torch_answers(graphs["encoder"], {"image": image})["mean"]
    inputs: dict[str, NDArray[Any]] = {
        "image": image,
        "eps": noise.standard_normal(0, 0, rows, mean.shape[1]),
        "u": noise.uniform(0, 0, rows),
        "label": np.arange(rows, dtype=np.int64) % (labels + 1) - 1,
    }
    drawn = inputs["eps"]
    if "prior" in graphs:
        drawn = torch_answers(graphs["prior"], inputs)["z"]
    inputs["z"] = np.concatenate([mean[: rows // 2], drawn[rows // 2 :]])
    return inputs


def golden_rows(
    graphs: Mapping[GraphName, ExportedGraph], inputs: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """The first rows of the inputs and torch's outputs for them, by "graph.tensor"."""
    golden: dict[str, NDArray[Any]] = {}
    for name, graph in graphs.items():
        rows = _IMAGE_ROWS if name in ("encoder", "decoder") else _LATENT_ROWS
        first = {tensor: inputs[tensor][:rows] for tensor in graph.inputs}
        tensors = first | torch_answers(graph, first)
        golden |= {f"{name}.{tensor}": array for tensor, array in tensors.items()}
    return golden


def golden_file(golden: Mapping[str, NDArray[Any]]) -> bytes:
    """Golden rows as the content of `golden.npz`."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **golden)  # type: ignore[arg-type]
    return buffer.getvalue()
