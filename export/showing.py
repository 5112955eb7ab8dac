"""Golden rows of a model that was not trained here, and what its model card shows."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bundle import GraphName
from common import noise
from common.pixels import to_bytes, to_unit
from common.quality import psnr
from export.golden import golden_rows
from export.graphs import ExportedGraph
from export.images import golden_images
from export.pictures import SEED, reconstructions_picture, sample_grid, samples_picture
from export.sources.imported import Imported
from export.verify import torch_answers
from service.models.onnx import Device, Graph
from service.models.speed import SLOW_SECONDS

Array = NDArray[np.float32]

# Maximum values of the images of the golden rows, and maximum rows.
_GOLDEN_VALUES, _GOLDEN_ROWS = 1 << 19, 8
# Images of the card and, where sizes are free, their height and width, unless one takes longer
# than so many seconds.
_SHOWN, _SHOWN_SIDE, _SHOWN_SECONDS = 5, 256, 5.0


def imported_golden(
    imported: Imported,
    graphs: Mapping[GraphName, ExportedGraph],
    images: Path | None,
    seconds: float,
) -> dict[str, NDArray[Any]]:
    """The golden rows by "graph.tensor": few, since a server computes them at every load."""
    most = _GOLDEN_VALUES // math.prod(imported.image_shape)
    rows = 1 if seconds > SLOW_SECONDS else max(1, min(_GOLDEN_ROWS, most))
    inputs: dict[str, NDArray[Any]] = {}
    drawn = _drawn_latents(imported, rows)
    if "encoder" in graphs:
        inputs["image"] = to_unit(golden_images(images, rows, imported.image_shape))
        mean = torch_answers(graphs["encoder"], inputs)["mean"]
        half = len(mean) // 2 if imported.prior == "standard" else 0
        inputs["z"] = np.concatenate([mean[half:], drawn[:half]])
    else:
        inputs["z"] = drawn
    return golden_rows(graphs, dict.fromkeys(graphs, inputs))


def _drawn_latents(imported: Imported, rows: int) -> Array:
    """Draws from N(0, I), scaled back by `latent_scaling` to what the decoder takes."""
    flat = noise.standard_normal(0, 0, rows, math.prod(imported.latent_shape))
    z = flat.reshape(rows, *imported.latent_shape)
    scaling = imported.latent_scaling
    if scaling is None or imported.prior == "standard":
        return z
    if scaling.scale is not None:
        return (z / scaling.scale + scaling.shift).astype(np.float32)
    std, mean = (np.array(each, np.float32)[:, None, None] for each in (scaling.std, scaling.mean))
    return z * std + mean


def show(
    imported: Imported,
    contents: Mapping[GraphName, bytes],
    images: Path | None,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The PSNR of reconstructions, and the pictures of the card, PNG files by name."""
    sessions = {name: Graph(content, Device("cpu"), rows=1) for name, content in contents.items()}
    metrics: dict[str, Any] = {}
    files: dict[str, bytes] = {}
    if imported.encoder is not None or "encoder" in contents:
        originals = golden_images(images, _SHOWN, _shown_shape(imported, seconds))
        mean = sessions["encoder"].run({"image": to_unit(originals)}, ("mean",))["mean"]
        pixels = _pixels(sessions["decoder"], mean)
        files |= reconstructions_picture(originals, pixels)
        height, width = originals.shape[2:]
        ratio = float(psnr(pixels, originals).mean())
        source = "drawn from a seed" if images is None else "of a folder"
        metrics |= {
            "psnr": round(ratio, 3),
            "images": len(originals),
            "protocol": f"PSNR of the reconstructions of {len(originals)} images of {height} x "
            f"{width} pixels {source}: {ratio:.2f} dB",
            "measured_on": "onnxruntime",
        }
    if imported.prior == "standard":
        columns, rows = sample_grid(imported.image_shape)
        count = columns * rows
        flat = noise.standard_normal(SEED, 0, count, math.prod(imported.latent_shape))
        z = flat.reshape(count, *imported.latent_shape)
        files |= samples_picture(_pixels(sessions["decoder"], z), columns)
    return metrics, files


def _shown_shape(imported: Imported, seconds: float) -> tuple[int, int, int]:
    """Shape of the images of the card: large ones tell more of a model of free size."""
    channels, height, width = imported.image_shape
    if imported.sizes is None:
        return imported.image_shape
    step = imported.sizes.multiple
    side = max(height, width, _SHOWN_SIDE // step * step)
    slow = seconds * side**2 / (height * width) > _SHOWN_SECONDS
    if slow or side**2 > imported.sizes.most_pixels:
        return imported.image_shape
    return (channels, side, side)


def _pixels(decoder: Graph, z: Array) -> NDArray[np.uint8]:
    return to_bytes(np.clip(decoder.run({"z": z}, ("image",))["image"], 0, 1))
