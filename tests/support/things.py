"""A tiny data set for tests of joined posteriors: things that each class shows another way."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data.datasets import Dataset, Split

CLASSES, SIDE = 4, 6
_TEMPLATES = np.random.default_rng(99).random((CLASSES, 2, SIDE, SIDE))


def draw_things(
    things: int, *, seed: int = 0, noise: float = 0.1
) -> tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.int64]]:
    """Draws each thing once in each class.

    A thing is two numbers, and its images are mixtures of the two templates of their class by these
    numbers, with noise of a deviation at which one image does not tell them well.

    Returns:
        Pictures, uint8 [N, 1, 6, 6]; their classes and their things, int64 [N] each.
    """
    rng = np.random.default_rng(seed)
    numbers = rng.random((things, 2))
    clean = np.einsum("tk,ckhw->tchw", numbers, _TEMPLATES).reshape(-1, 1, SIDE, SIDE) / 2
    noisy = clean + noise * rng.standard_normal(clean.shape)
    images = np.rint(255 * noisy.clip(0, 1)).astype(np.uint8)
    return images, np.tile(np.arange(CLASSES), things), np.repeat(np.arange(things), CLASSES)


def things(count: int = 60) -> Dataset:
    """A data set of things, with a third as many to validate and to test on."""
    splits = [
        Split(*draw_things(each, seed=seed))
        for seed, each in enumerate((count, count // 3, count // 3))
    ]
    names = tuple(str(index) for index in range(CLASSES))
    return Dataset("things", *splits, class_names=names, sha256={})


def write_things(folder: Path, count: int = 60) -> str:
    """Writes things as npy files; returns the source for `--data`."""
    folder.mkdir(parents=True, exist_ok=True)
    images, labels, groups = draw_things(count)
    for name, array in (
        ("images", images),
        ("labels", labels),
        ("groups", np.array([f"thing {group}" for group in groups])),
    ):
        np.save(folder / f"{name}.npy", array)
    return "npy:" + ",".join(str(folder / f"{name}.npy") for name in ("images", "labels", "groups"))
