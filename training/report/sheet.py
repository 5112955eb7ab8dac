"""Images as sheets of pixels: rows and columns of them, ready to be put on a page."""

import math

import numpy as np
from PIL import Image

from common.pixels import to_bytes
from training.report.story import Bytes, Floats

_DARK = 40
_SMOOTH = 6


def clip_to_bytes(images: Floats) -> Bytes:
    """Images as bytes, clipped to [0, 1] first; NaN becomes 0."""
    clean = np.nan_to_num(np.asarray(images, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return to_bytes(np.clip(clean, 0.0, 1.0), overwrite=True)


def is_ink(images: Bytes) -> bool:
    """Whether images [n, C, H, W] are strokes on black, as MNIST's are.

    Such are printed the other way round, dark strokes on white paper: a sheet of
    them is one picture then, not a wall of black tiles.
    """
    if images.shape[1] != 1 or images.size == 0:
        return False
    edges = np.concatenate(
        [images[:, :, [0, -1]].reshape(-1), images[:, :, :, [0, -1]].reshape(-1)]
    )
    return bool(np.median(images) < _DARK and edges.mean() < _DARK)


def fit(images: Bytes, side: int, *, ink: bool) -> Bytes:
    """Resizes images [n, C, H, W] to `side` pixels along their longer edge.

    Made smaller, pixels are averaged; enlarged a little they are smoothed; of tiny
    images they stay squares.

    Args:
        images: uint8 [n, C, H, W].
        side: Wanted length of the longer edge, at least 1.
        ink: Whether they are to be printed dark on white.

    Returns:
        uint8 [n, h, w, 3].
    """
    height, width = images.shape[2:]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    method = Image.Resampling.BOX if scale < 1 else Image.Resampling.BICUBIC
    if scale > _SMOOTH:
        method = Image.Resampling.NEAREST
    fitted = np.empty((len(images), size[1], size[0], 3), np.uint8)
    for index, image in enumerate(images):
        pixels = image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0))
        picture = Image.fromarray(255 - pixels if ink else pixels).convert("RGB")
        fitted[index] = np.asarray(picture.resize(size, method))
    return fitted


def lay_out(pictures: Bytes, columns: int, gap: int) -> Bytes:
    """Puts pictures [n, h, w, 3] in rows on white, with `gap` pixels between them."""
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def best_columns(count: int, shape: tuple[int, ...], box: tuple[float, float]) -> int:
    """The number of columns that makes `count` images largest within a box.

    Whole rows are worth a little size.

    Args:
        count: How many images, at least 1.
        shape: Height and width of each.
        box: Height and width of the box.
    """

    def worth(columns: int) -> float:
        rows = math.ceil(count / columns)
        scale = min(box[0] / (rows * shape[0]), box[1] / (columns * shape[1]))
        return scale * (1.0 if count % columns == 0 else 0.8)

    return max(range(1, count + 1), key=worth)


def side_within(
    count: int, columns: int, shape: tuple[int, ...], box: tuple[float, float], gap: int
) -> int:
    """How large images can be in a box.

    Args:
        count: How many images, at least 1.
        columns: How many stand in a row.
        shape: Height and width of each.
        box: Height and width of the box.
        gap: Pixels between images.

    Returns:
        The length of the longer edge, at least 1; where `fit` makes squares of pixels,
        a whole number to each.
    """
    rows = math.ceil(count / columns)
    scale = min(
        ((box[0] + gap) / rows - gap) / shape[0], ((box[1] + gap) / columns - gap) / shape[1]
    )
    longer = max(shape)
    return longer * int(scale) if scale > _SMOOTH else max(1, int(longer * scale))
