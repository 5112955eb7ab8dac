"""The images of a split in the form that models are measured on: floats, binarized or not."""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.pixels import to_unit
from training.data.rows import Images


class Targets:
    """Images as float32 in [0, 1], converted when they are indexed.

    Args:
        images: uint8 [N, C, H, W].
        seed: Philox key of the bits drawn from the grey values; None for the values themselves.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, images: Images, seed: int | None):
        self._images = images
        self._seed = seed

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H and W."""
        return self._images.shape

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: slice | NDArray[Any]) -> NDArray[np.float32]:
        """Converts the images of a slice or an index array: float32 [n, C, H, W]."""
        chosen = self._images[index]
        if self._seed is None:
            return to_unit(chosen)
        if isinstance(index, slice) and index.step in (None, 1):
            return binarize(chosen, self._seed, index.indices(len(self))[0])
        rows = np.arange(len(self))[index]
        bits = [
            binarize(chosen[place : place + 1], self._seed, int(row))
            for place, row in enumerate(rows)
        ]
        return np.concatenate(bits) if bits else np.empty(chosen.shape, np.float32)


def binarize(images: NDArray[np.uint8], seed: int, start: int = 0) -> NDArray[np.float32]:
    """Draws one bit per pixel: 1 with probability grey value / 255, else 0.

    It is the protocol of the published MNIST likelihoods (Salakhutdinov and Murray 2008;
    Burda et al. 2016). The bits come from Philox under the key `seed`, so they are the same
    on every machine.

    Args:
        images: uint8, any shape.
        seed: Philox key.
        start: Index of the first image in a larger set, from whose bits those of the images
            are taken.

    Returns:
        float32 of the same shape, each element 0 or 1.
    """
    # Compares 32 random bits per pixel with value / 255: 0 never and 255 always sets the bit.
    # A block of Philox has eight times 32 bits.
    first = start * math.prod(images.shape[1:])
    block, skipped = divmod(first, 8)
    generator = np.random.Philox(key=seed, counter=block)
    words = generator.random_raw((skipped + images.size + 1) // 2)
    bits = np.frombuffer(words.astype("<u8").tobytes(), "<u4", images.size, 4 * skipped)
    threshold = (images.reshape(-1).astype(np.uint64) << np.uint64(32)) // np.uint64(255)
    return (bits < threshold).astype(np.float32).reshape(images.shape)
