"""Images for the golden rows and the card of an imported model: a folder's, or from a seed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.pictures import SUFFIXES, PictureError, decode
from export.errors import ExportError
from latentserve._files import reason
from latentserve._walk import walk

_WAVES, _DISCS = 3, 4


def golden_images(
    folder: Path | None, count: int, shape: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """Images of one shape, uint8 [N, C, H, W].

    Args:
        folder: A folder with at least one picture, of which the first ones by path are cropped and
            resized; None to draw images from a seed.
        count: N; fewer if the folder has fewer.
        shape: C, H and W.

    Raises:
        ExportError: The folder cannot be read, has no pictures, or one of them is damaged.
    """
    if folder is None:
        return np.stack([_drawn(seed, shape) for seed in range(count)])
    try:
        paths = walk(folder, SUFFIXES).paths[:count]
    except OSError as error:
        raise ExportError(f"--images {folder}: {reason(error)}") from error
    if not paths:
        raise ExportError(
            f"--images {folder}: no images, wanted files named {', '.join(sorted(SUFFIXES))}"
        )
    images = []
    for path in paths:
        try:
            images.append(decode((folder / path).read_bytes(), shape[1:], shape[0]))
        except (OSError, PictureError) as error:
            raise ExportError(f"--images {folder / path}: {error}") from error
    return np.stack(images)


def _drawn(seed: int, shape: tuple[int, int, int]) -> NDArray[np.uint8]:
    """Waves of colour with discs before them: smooth areas and sharp edges, as in photographs."""
    channels, height, width = shape
    rng = np.random.default_rng(seed)
    rows, columns = np.indices((height, width)) / max(height, width)
    image = np.zeros(shape)
    for _ in range(_WAVES):
        across, down, phase = rng.uniform(-9, 9), rng.uniform(-9, 9), rng.uniform(0, 6.3)
        colour = rng.uniform(-1, 1, (channels, 1, 1))
        image += colour * np.sin(across * columns + down * rows + phase)
    image = 0.5 + image / (2 * _WAVES)
    for _ in range(_DISCS):
        y, x, radius = rng.uniform(0, 1), rng.uniform(0, 1), rng.uniform(0.05, 0.25)
        inside = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        image = np.where(inside, rng.uniform(0, 1, (channels, 1, 1)), image)
    pixels: NDArray[np.uint8] = np.rint(image.clip(0, 1) * 255).astype(np.uint8)
    return pixels
