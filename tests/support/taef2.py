"""TAEF2, a trained autoencoder made by others, as a bundle: spatial latents, images of any size.

The tiny autoencoder of FLUX.2 from the public repository madebyollin/taesd, under the MIT licence.
Its weights are not part of this repository: `LATENTSERVE_TAEF2` names their folder.
"""

import os
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from torch import nn

from export.autoencoder import write_imported
from export.sources import taesd
from export.sources.imported import Imported, ImportOptions

#: Skips a test where the weights are not there.
needs_taef2 = pytest.mark.skipif(
    "LATENTSERVE_TAEF2" not in os.environ,
    reason="LATENTSERVE_TAEF2 is not set: wanted a folder with taef2_encoder.pth",
)


def weights() -> Path:
    """The folder of the weights."""
    return Path(os.environ["LATENTSERVE_TAEF2"])


@cache
def _imported() -> Imported:
    return taesd.load(weights(), ImportOptions(licence="MIT"))


def halves() -> tuple[nn.Module, nn.Module]:
    """The encoder and the decoder in torch, float32."""
    imported = _imported()
    assert imported.encoder is not None
    assert imported.decoder is not None
    return imported.encoder, imported.decoder


def photograph(name: str) -> NDArray[np.uint8]:
    """A photograph that scikit-image ships, uint8 [3, H, W], cropped to multiples of 8.

    Args:
        name: `astronaut` (512 x 512), `chelsea`, a cat (296 x 448), or `coffee` (400 x 600).
    """
    pytest.importorskip("skimage")
    with Image.open(str(resources.files("skimage") / "data" / f"{name}.png")) as file:
        pixels = np.asarray(file.convert("RGB"))
    height, width = (side // taesd.FACTOR * taesd.FACTOR for side in pixels.shape[:2])
    return np.ascontiguousarray(pixels[:height, :width].transpose(2, 0, 1))


def psnr(got: NDArray[np.float32], image: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio in dB of an image float32 in [0, 1]."""
    error = np.mean((got.astype(np.float64) - image / 255) ** 2)
    return float(-10 * np.log10(error))


def make(folder: Path) -> None:
    """Fills a models folder with the model `taef2`, as `latentserve import` does."""
    write_imported(_imported(), folder / "taef2")
