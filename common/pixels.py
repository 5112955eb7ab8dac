"""Pixels as bytes and as the floats that graphs take, in both directions.

One place, since training, export and service must round alike: a division by 255 and a
multiplication by its reciprocal differ in the last bit.
"""

import numpy as np
from numpy.typing import NDArray


def to_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes 0 to 255 as float32 in [0, 1], of the same shape."""
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def to_bytes(pixels: NDArray[np.float32], *, overwrite: bool = False) -> NDArray[np.uint8]:
    """Float32 in [0, 1] as bytes 0 to 255, rounded half to even, of the same shape.

    Args:
        pixels: Must be finite and within [0, 1]; other values wrap.
        overwrite: Allow `pixels` to be used as scratch space, which spares a copy.
    """
    scaled = np.multiply(pixels, np.float32(255), out=pixels if overwrite else None)
    return np.rint(scaled, out=scaled).astype(np.uint8)
