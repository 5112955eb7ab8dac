"""Similarity of images to what a model makes of them: PSNR and SSIM."""

import math

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Figures = NDArray[np.float64]

# Side and standard deviation of the window of Wang et al. 2004, section III.B, and its constants.
_SIDE, _SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255.0) ** 2, (0.03 * 255.0) ** 2
# Least mean squared error, of a peak of 1: at most 100 dB.
_LEAST_ERROR = 1e-10
# Values whose moments are computed at a time; there are five arrays of them in float64.
_BLOCK_VALUES = 1 << 18


def psnr(images: Bytes, originals: Bytes) -> Figures:
    """Peak signal-to-noise ratio of each image, float64 [N], in dB; at most 100.

    Args:
        images: uint8 [N, C, H, W].
        originals: What they should be, of the same shape.
    """
    errors = ((images.astype(np.float64) - originals) / 255) ** 2
    return np.asarray(-10 * np.log10(np.maximum(errors.mean(axis=(1, 2, 3)), _LEAST_ERROR)))


def ssim(images: Bytes, originals: Bytes) -> Figures:
    """Structural similarity of each image (Wang et al. 2004), float64 [N], at most 1.

    The mean over channels and over all places at which a Gaussian window of 11 x 11 pixels lies
    within the image; of smaller images, one of the largest odd side.

    Args:
        images: uint8 [N, C, H, W].
        originals: What they should be, of the same shape.
    """
    result = np.empty(len(images))
    rows = max(1, _BLOCK_VALUES // math.prod(images.shape[1:]))
    windows = [_window(side) for side in images.shape[2:]]
    for start in range(0, len(images), rows):
        block = slice(start, start + rows)
        a, b = (array[block].astype(np.float64) for array in (images, originals))
        mean_a, mean_b, square_a, square_b, product = (
            _filtered(array, windows) for array in (a, b, a * a, b * b, a * b)
        )
        covariance = product - mean_a * mean_b
        variances = square_a - mean_a**2 + square_b - mean_b**2
        likeness = (2 * mean_a * mean_b + _C1) * (2 * covariance + _C2)
        likeness /= (mean_a**2 + mean_b**2 + _C1) * (variances + _C2)
        result[block] = likeness.mean(axis=(1, 2, 3))
    return result


def _window(side: int) -> Figures:
    """The window along an axis of `side` pixels; its values sum to 1."""
    width = min(_SIDE, side - 1 + side % 2)
    offsets = np.arange(width) - width // 2
    window = np.exp(-0.5 * (offsets / _SIGMA) ** 2)
    return np.asarray(window / window.sum())


def _filtered(images: Figures, windows: list[Figures]) -> Figures:
    """Weighted means of images [N, C, H, W] where the window lies within them."""
    for axis, window in zip((2, 3), windows, strict=True):
        places = images.shape[axis] - len(window) + 1
        moved = (images.take(range(start, start + places), axis) for start in range(len(window)))
        images = np.sum([w * part for w, part in zip(window, moved, strict=True)], axis=0)
    return images
