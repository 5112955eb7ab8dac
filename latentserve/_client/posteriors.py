"""Posteriors of one thing, joined from those of several images of it."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def joined(
    mean: NDArray[Any], log_var: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The product of posteriors, with the prior N(0, I), which is in each of them, only once.

    Precisions add up, less n - 1 times that of the prior (Wu and Goodman 2018). In a
    dimension in which a posterior is wider than N(0, I), what is taken off is as wide as the
    widest: then the result is a Gaussian whatever they are, and at least as narrow as each of them.
    `training.model.joined` is the same in torch.

    Args:
        mean: Means of the posteriors of n images, [n, ...].
        log_var: Natural logarithms of their variances, of the same shape.

    Returns:
        Mean and log-variance of the one posterior, [...]; of a single image, its own.
    """
    mean, log_var = mean.astype(np.float64), log_var.astype(np.float64)
    least, widest = log_var.min(axis=0), np.maximum(log_var.max(axis=0), 0.0)
    # As multiples of the largest precision, which may be too large for a float.
    precision = np.exp(least - log_var)
    total = precision.sum(axis=0) - (len(mean) - 1) * np.exp(least - widest)
    middle = (precision * mean).sum(axis=0) / total
    return middle.astype(np.float32), (least - np.log(total)).astype(np.float32)
