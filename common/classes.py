"""How a conditional model draws a class: one rule for the server, for export and for the cards."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

# The largest float32 of the uniform noise, which has 24 bits.
_LARGEST = np.float32(1.0 - 2.0**-24)


def draw_classes(
    weights: Sequence[float], u: NDArray[np.float32]
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Draws a class for each row from uniform noise, and returns what is left of the noise.

    The class is the first one whose cumulative weight is above u. Given its class, u is uniform
    in the class's interval, so that its place there is uniform noise again: it chooses the
    component of a mixture prior.

    Args:
        weights: How often each class is in the training data: K numbers that sum to 1.
        u: Uniform noise in [0, 1) of 24 bits, float32 [N, 1], as of `common.noise.uniform`.

    Returns:
        The classes, int64 [N], and what is left: uniform noise in [0, 1), float32 [N, 1].
    """
    share = np.asarray(weights, np.float64)
    above = np.cumsum(share)
    # Rounding must not leave a u without a class.
    above[-1] = 1.0
    below = np.concatenate([[0.0], above[:-1]])
    wide = u[:, 0].astype(np.float64)
    classes = np.searchsorted(above, wide, side="right")
    left = ((wide - below[classes]) / share[classes]).astype(np.float32)
    return classes.astype(np.int64), np.clip(left, np.float32(0), _LARGEST)[:, None]
