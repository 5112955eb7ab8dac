"""Checks of the values of images and latents."""

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

from service.errors import InvalidArgument

#: Largest absolute value accepted in a latent: far outside any prior, yet no graph overflows on it.
MAX_LATENT: Final = 1e6


def check_pixels(pixels: NDArray[np.float32], field: str) -> None:
    """Validates that pixels are in [0, 1].

    Args:
        pixels: The pixels.
        field: Path of their tensor, for errors.

    Raises:
        InvalidArgument: A value is outside [0, 1] or NaN.
    """
    _check_range(pixels, field, 0.0, 1.0, "values from 0 to 1 (or UINT8)")


def check_latents(latents: NDArray[np.float32], field: str) -> None:
    """Validates that latents are finite and at most MAX_LATENT in absolute value.

    Args:
        latents: The latents.
        field: Path of their tensor, for errors.

    Raises:
        InvalidArgument: A value is not finite or exceeds MAX_LATENT.
    """
    wanted = f"finite values, at most {MAX_LATENT:g} in absolute value"
    _check_range(latents, field, -MAX_LATENT, MAX_LATENT, wanted)


def _check_range(
    values: NDArray[np.float32], field: str, least: float, most: float, wanted: str
) -> None:
    # For one image the array's methods `min` and `max` take twice as long.
    low, high = float(np.minimum.reduce(values, None)), float(np.maximum.reduce(values, None))
    # Written so that NaN fails the check.
    if not (low >= least and high <= most):
        got = "NaN" if math.isnan(low) else f"values from {_digits(low)} to {_digits(high)}"
        raise InvalidArgument(f"{field}.data", got, wanted)


def _digits(value: float) -> str:
    """Formats a float32 with six digits, or with as many as it takes to read back its value."""
    short = f"{value:g}"
    return short if np.float32(short) == np.float32(value) else str(np.float32(value))
