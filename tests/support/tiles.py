"""Splits a grid of images, as commands draw it, into its images."""

from pathlib import Path

import numpy as np
from PIL import Image


def tiles(path: Path, rows: int, columns: int, size: int = 28) -> np.ndarray:
    """Cuts a grid of grey images, drawn with `--zoom 1`: uint8 [rows, columns, H, W]."""
    with Image.open(path) as picture:
        sheet = np.asarray(picture)
    assert sheet.shape == (rows * (size + 2) + 2, columns * (size + 2) + 2)
    cut = sheet[2:, 2:].reshape(rows, size + 2, columns, size + 2).transpose(0, 2, 1, 3)
    return cut[:, :, :size, :size]
