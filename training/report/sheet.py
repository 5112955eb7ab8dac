"""Sheets: images resized and arranged in rows and columns."""

import math

import numpy as np
from PIL import Image

from common.pixels import to_bytes
from training.report.data import Bytes, Floats

_DARK = 40
_SMOOTH = 6


def clip_to_bytes(images: Floats) -> Bytes:
    """Clips images to [0, 1] and converts them to bytes; NaN becomes 0."""
    clean = np.nan_to_num(np.asarray(images, np.float32), nan=0.0, posinf=1.0, neginf=0.0)
    return to_bytes(np.clip(clean, 0.0, 1.0), overwrite=True)


def is_ink(images: Bytes) -> bool:
    """Whether images [n, C, H, W] are light strokes on black, as MNIST's are.

    Sheets show such images inverted, as dark strokes on white instead of black tiles.
    """
    if images.shape[1] != 1 or images.size == 0:
        return False
    edges = np.concatenate(
        [images[:, :, [0, -1]].reshape(-1), images[:, :, :, [0, -1]].reshape(-1)]
    )
    return bool(np.median(images) < _DARK and edges.mean() < _DARK)


def fit(images: Bytes, side: int, *, ink: bool) -> Bytes:
    """Resizes images to `side` pixels along their longer edge.

    Shrinking averages pixels and enlarging interpolates them, but enlarging more than
    sixfold turns each pixel into a square.

    Args:
        images: uint8 [n, C, H, W].
        side: Length of the longer edge in pixels, at least 1.
        ink: Whether to invert the images, see `is_ink`.

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
    """Arranges pictures [n, h, w, 3] in rows on white, with `gap` pixels between them."""
    count, height, width, _ = pictures.shape
    rows = math.ceil(count / columns)
    sheet = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, 3), 255, np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * (height + gap), index % columns * (width + gap)
        sheet[top : top + height, left : left + width] = picture
    return sheet


def best_columns(count: int, shape: tuple[int, ...], box: tuple[float, float]) -> int:
    """The number of columns with which `count` images fill a box best.

    Full rows are preferred unless they make the images much smaller.

    Args:
        count: Number of images, at least 1.
        shape: Height and width of an image.
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
    """The largest size at which images in rows fit in a box.

    Args:
        count: Number of images, at least 1.
        columns: Images in a row.
        shape: Height and width of an image.
        box: Height and width of the box.
        gap: Pixels between images.

    Returns:
        Length of an image's longer edge in pixels, at least 1. It is a multiple of the
        original length if `fit` turns pixels into squares.
    """
    rows = math.ceil(count / columns)
    scale = min(
        ((box[0] + gap) / rows - gap) / shape[0], ((box[1] + gap) / columns - gap) / shape[1]
    )
    longer = max(shape)
    return longer * int(scale) if scale > _SMOOTH else max(1, int(longer * scale))
