"""Alignment of arrays, which the bits of some operators' results depend on."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

# That of a cache line, in bytes.
_ALIGNMENT = 64


def aligned(array: NDArray[Any]) -> NDArray[Any]:
    """Returns an array whose buffer starts at a multiple of 64 bytes, copied if need be."""
    return array if array.ctypes.data % _ALIGNMENT == 0 else copy_at(0, array)


def copy_at(offset: int, array: NDArray[Any]) -> NDArray[Any]:
    """Copies an array to an address that is `offset` bytes above a multiple of 64.

    Args:
        offset: 0 to 63.
        array: The array.
    """
    buffer = np.empty(array.nbytes + 2 * _ALIGNMENT, np.uint8)
    start = -buffer.ctypes.data % _ALIGNMENT + offset
    copy = buffer[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy
