"""Pictures from a seed to train on, so that nothing has to be downloaded."""

import numpy as np

from training.data.datasets import Dataset, Split

_CLASSES = 10
_BLOCK = 4
_HELD_OUT = 256


def dataset(count: int, shape: tuple[int, int, int]) -> Dataset:
    """Blocks of random colours with noise; of one channel, of black and white as digits are.

    Args:
        count: Number of training images; 256 more are for validation and for the test.
        shape: C, H and W; H and W are multiples of 4.
    """
    rng = np.random.default_rng(0)
    channels, height, width = shape

    def split(images: int) -> Split:
        blocks = (images, channels, height // _BLOCK, width // _BLOCK)
        labels = rng.integers(0, _CLASSES, images)
        levels = rng.integers(0, 2 if channels == 1 else 224, blocks, np.uint8)
        large = levels.repeat(_BLOCK, axis=2).repeat(_BLOCK, axis=3)
        if channels == 1:
            return Split(large * np.uint8(255), labels)
        return Split(large + rng.integers(0, 32, large.shape, np.uint8), labels)

    names = tuple(str(label) for label in range(_CLASSES))
    return Dataset("blocks", split(count), split(_HELD_OUT), split(_HELD_OUT), names, {})
