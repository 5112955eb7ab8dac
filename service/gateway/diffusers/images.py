"""Images as diffusers has them, in [-1, 1], and as bundles have them, in [0, 1]."""

import numpy as np
from numpy.typing import NDArray

from service.api.codec import Pixels
from service.errors import InvalidArgument
from service.gateway.arrays import Array


def to_unit(images: Array) -> NDArray[np.float32]:
    """Maps images from [-1, 1] to [0, 1].

    Args:
        images: Floats, of any shape.

    Returns:
        float32 of the same shape.

    Raises:
        InvalidArgument: A value is outside [-1, 1] or NaN.
    """
    pixels = images.astype(np.float32)  # before the check: numpy is slow in float16
    low, high = float(pixels.min()), float(pixels.max())
    # Written so that NaN fails the check.
    if not (low >= -1.0 and high <= 1.0):
        got = f"values from {low:g} to {high:g}"
        raise InvalidArgument("body", got, "values from -1 to 1 (or uint8)")
    pixels *= 0.5
    pixels += 0.5
    return pixels


def to_signed(images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Maps images from [0, 1] to [-1, 1]; values outside stay outside."""
    return images * np.float32(2.0) - np.float32(1.0)


def in_colour(images: Pixels) -> Pixels:
    """Images [N, C, H, W] as [N, 3, H, W]: grey ones become grey in three channels."""
    if images.shape[1] != 1:
        return images
    return np.repeat(images, 3, axis=1)  # type: ignore[return-value] # of the same dtype
