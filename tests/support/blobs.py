"""A tiny data set for tests of training: bright squares whose position is their class."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.datasets import Dataset, Split

CLASSES = 3


def draw_blobs(
    rows: int, side: int = 8, *, seed: int = 0, channels: int = 1
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draws pictures, uint8 [rows, channels, side, side], and their classes, int64 [rows]."""
    rng = np.random.default_rng(seed)
    labels = np.arange(rows) % CLASSES
    images = rng.integers(0, 40, (rows, channels, side, side), dtype=np.uint8)
    size = max(1, side // 3)
    for image, label in zip(images, labels, strict=True):
        top, left = rng.integers(0, size, 2)
        left = min(side - size, int(left) + int(label) * size // 2)
        image[:, top : top + size, left : left + size] = rng.integers(180, 256)
    return images, labels


def blobs(rows: int = 300, side: int = 8, *, channels: int = 1, labelled: bool = True) -> Dataset:
    """A data set of blobs, with a third as many to validate and to test on."""
    splits = [
        Split(*draw_blobs(count, side, seed=seed, channels=channels))
        for seed, count in enumerate((rows, rows // 3, rows // 3))
    ]
    if not labelled:
        splits = [Split(split.images, np.zeros_like(split.labels)) for split in splits]
    names = tuple(f"class {index}" for index in range(CLASSES)) if labelled else ()
    return Dataset("blobs", *splits, class_names=names, sha256={})


def write_blobs(folder: Path, rows: int = 400, side: int = 8) -> str:
    """Writes blobs as IDX files; returns the source for `--data`."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels = draw_blobs(rows, side)
    for name, array in (("images", images[:, 0]), ("labels", labels.astype(np.uint8))):
        header = bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape)
        (folder / name).write_bytes(header + array.tobytes())
    return f"idx:{folder / 'images'},{folder / 'labels'}"
