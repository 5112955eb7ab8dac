"""Conversion between float32 and bfloat16, which NumPy lacks: the upper half of a float32."""

import numpy as np
from numpy.typing import NDArray


def to_bfloat16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """Rounds float32 to bfloat16, half to even; returns the bits, of the same shape.

    Values beyond the largest bfloat16 become infinite, and NaN stays NaN.
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    halves = bits >> np.uint32(16)
    # In place from here on, since arrays of images are large.
    halves &= np.uint32(1)
    halves += np.uint32(0x7FFF)
    halves += bits
    halves >>= np.uint32(16)
    rounded = halves.astype(np.uint16)
    nan = np.isnan(values)
    if nan.any():
        rounded[nan] = 0x7FC0
    return rounded


def from_bfloat16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    """Converts the bits of bfloat16 to float32 of the same shape, exactly."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
