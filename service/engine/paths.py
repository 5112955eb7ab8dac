"""Interpolation paths and traversal grids in a latent space."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Two latents count as parallel if the sine of the angle between them is below this.
_PARALLEL = 1e-6


def linear(start: Array, stop: Array, steps: int) -> Array:
    """Returns points on the straight line between two latents, ends included.

    Args:
        start: float32 [D] or [c, h, w].
        stop: float32 of the same shape.
        steps: Number of points, at least 2.

    Returns:
        float32 [steps, D] or [steps, c, h, w]; the first and the last are bit-equal to the ends.
    """
    t = _steps(steps, start)
    path = (1.0 - t) * start.astype(np.float64) + t * stop.astype(np.float64)
    return _with_ends(path, start, stop)


def spherical(start: Array, stop: Array, steps: int) -> Array:
    """Returns points on the arc between two latents, ends included.

    Spherical linear interpolation (Shoemake 1985; for latents White 2016): the angle grows
    evenly, and the norm changes from that of the first end to that of the last. If the ends are
    parallel or opposite, or one of them is 0, there is no arc and the path is the straight
    line.

    Args:
        start: float32 [D] or [c, h, w].
        stop: float32 of the same shape.
        steps: Number of points, at least 2.

    Returns:
        float32 [steps, D] or [steps, c, h, w]; the first and the last are bit-equal to the ends.
    """
    a, b = start.astype(np.float64), stop.astype(np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0.0:
        return linear(start, stop, steps)
    angle = math.acos(min(1.0, max(-1.0, float(np.vdot(a, b)) / lengths)))
    if math.sin(angle) < _PARALLEL:
        return linear(start, stop, steps)
    t = _steps(steps, start)
    path = (np.sin((1.0 - t) * angle) * a + np.sin(t * angle) * b) / math.sin(angle)
    return _with_ends(path, start, stop)


def traverse(
    middle: Array, std: Array, axes: tuple[int, ...], steps: int, reach: float
) -> tuple[Array, int, int]:
    """Returns a row or a grid of points along one or two latent axes.

    Args:
        middle: Latent in the middle, float32 [D] or [c, h, w].
        std: Standard deviation of the prior along each latent axis, float32 [D].
        axes: The latent axis that grows from left to right, and optionally a second one that
            grows from the bottom row to the top row; of the latent flattened in C order.
        steps: Points along each axis, at least 2.
        reach: Distance to either side of the middle, in standard deviations of the prior.

    Returns:
        The points row by row from the top, float32 [rows * columns, D] or [rows * columns, c, h,
        w], and the numbers of rows and columns.
    """
    offsets = np.linspace(-reach, reach, steps)
    rows = steps if len(axes) == 2 else 1
    points = np.tile(middle.astype(np.float64).ravel(), (rows, steps, 1))
    points[:, :, axes[0]] += offsets * float(std[axes[0]])
    if len(axes) == 2:
        points[:, :, axes[1]] += offsets[::-1, None] * float(std[axes[1]])
    return points.reshape(rows * steps, *middle.shape).astype(np.float32), rows, steps


def _steps(steps: int, start: Array) -> NDArray[np.float64]:
    """Equal steps from 0 to 1, [steps, 1, ...], to be multiplied with latents like `start`."""
    return np.linspace(0.0, 1.0, steps).reshape(-1, *[1] * start.ndim)


def _with_ends(path: NDArray[np.float64], start: Array, stop: Array) -> Array:
    """Converts a path to float32 and sets its ends to the exact latents."""
    points = path.astype(np.float32)
    points[0], points[-1] = start, stop
    return points
