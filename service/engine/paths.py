"""Paths and grids through a latent space: NumPy alone."""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

# Below this sine of the angle between two directions there is no arc to follow.
_PARALLEL = 1e-6


def linear(start: Array, stop: Array, steps: int) -> Array:
    """Returns points on the straight line between two latents, ends included.

    Args:
        start: float32 [D].
        stop: float32 [D].
        steps: How many points, at least 2.

    Returns:
        float32 [steps, D]; the first and the last are the ends to the bit.
    """
    t = np.linspace(0.0, 1.0, steps)[:, None]
    path = (1.0 - t) * start.astype(np.float64) + t * stop.astype(np.float64)
    return _with_ends(path, start, stop)


def spherical(start: Array, stop: Array, steps: int) -> Array:
    """Returns points on the arc between two latents, ends included.

    Spherical linear interpolation (Shoemake 1985; of latents White 2016): the angle
    grows evenly, and the length goes from one end's to the other's. Where the ends have
    the same or opposite directions, or one of them is 0, there is no arc and the path is
    the straight line.

    Args:
        start: float32 [D].
        stop: float32 [D].
        steps: How many points, at least 2.

    Returns:
        float32 [steps, D]; the first and the last are the ends to the bit.
    """
    a, b = start.astype(np.float64), stop.astype(np.float64)
    lengths = float(np.linalg.norm(a)) * float(np.linalg.norm(b))
    if lengths == 0.0:
        return linear(start, stop, steps)
    angle = math.acos(min(1.0, max(-1.0, float(a @ b) / lengths)))
    if math.sin(angle) < _PARALLEL:
        return linear(start, stop, steps)
    t = np.linspace(0.0, 1.0, steps)[:, None]
    path = (np.sin((1.0 - t) * angle) * a + np.sin(t * angle) * b) / math.sin(angle)
    return _with_ends(path, start, stop)


def traverse(
    middle: Array, std: Array, axes: tuple[int, ...], steps: int, reach: float
) -> tuple[Array, int, int]:
    """Returns the points of a line or a grid along latent axes.

    Args:
        middle: Where its middle is, float32 [D].
        std: What a standard deviation is along each axis, float32 [D].
        axes: One axis, growing from left to right, or also a second one, growing from
            the bottom row to the top one.
        steps: Points along each axis, at least 2.
        reach: Standard deviations to either side of the middle.

    Returns:
        The points row by row from the top, float32 [rows * columns, D], and how many
        rows and columns there are.
    """
    offsets = np.linspace(-reach, reach, steps)
    rows = steps if len(axes) == 2 else 1
    points = np.tile(middle.astype(np.float64), (rows, steps, 1))
    points[:, :, axes[0]] += offsets * float(std[axes[0]])
    if len(axes) == 2:
        points[:, :, axes[1]] += offsets[::-1, None] * float(std[axes[1]])
    return points.reshape(rows * steps, -1).astype(np.float32), rows, steps


def _with_ends(path: NDArray[np.float64], start: Array, stop: Array) -> Array:
    """The path as float32, its ends as they were given and not as they were rounded."""
    points = path.astype(np.float32)
    points[0], points[-1] = start, stop
    return points
