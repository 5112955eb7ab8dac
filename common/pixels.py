"""Conversion of pixels between bytes and the floats in [0, 1] that graphs take.

Training, export and service must round alike: a division by 255 and a multiplication by
its reciprocal differ in the last bit.
"""

import numpy as np
from numpy.typing import NDArray


def to_unit(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Converts bytes, 0 to 255, to float32 in [0, 1] of the same shape."""
    return np.divide(pixels, np.float32(255), dtype=np.float32)


def to_bytes(pixels: NDArray[np.float32], *, overwrite: bool = False) -> NDArray[np.uint8]:
    """Converts float32 in [0, 1] to bytes, 0 to 255, of the same shape, rounded half to even.

    Args:
        pixels: Finite and in [0, 1]; for other values the result is undefined.
        overwrite: Allows `pixels` to be used as scratch space, which saves a copy.
    """
    scaled = np.multiply(pixels, np.float32(255), out=pixels if overwrite else None)
    return np.rint(scaled, out=scaled).astype(np.uint8)
