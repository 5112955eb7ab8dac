"""The projection of latents of any dimension onto the plane of a picture.

Two dimensions are shown as they are, one as a line, and more as their first two
principal components. All pictures of a report and all frames of its movie have the same
projection, fitted to the final means.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from training.report.data import Floats

#: Extent of a decoded plane of principal components, in standard deviations from the mean.
REACH = 2.5


@dataclass(frozen=True)
class Projection:
    """An affine map from latents to the plane.

    Attributes:
        dimensions: D, the number of latent dimensions.
        centre: The latent that is mapped to the origin, float64 [D].
        axes: The axes as unit vectors, float64 [K, D]; K = 2, or 1 where D is 1.
        shares: Share of the variance along each axis, [K]; empty if D is 1 or 2, since
            latents are then shown as they are.
        deviations: Standard deviation of the fitted means along each axis, float64 [K].
    """

    dimensions: int
    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: tuple[float, ...]
    deviations: NDArray[np.float64]

    @property
    def names(self) -> tuple[str, ...]:
        """The name of each axis."""
        if not self.shares:
            return ("latent z",) if self.dimensions == 1 else ("latent z₁", "latent z₂")
        return tuple(
            f"principal component {index} ({100 * share:.0f}\N{NO-BREAK SPACE}% of the variance)"
            for index, share in enumerate(self.shares, 1)
        )

    @property
    def sentence(self) -> str:
        """A description of the projection, for captions."""
        if self.dimensions == 1:
            return (
                "The model has one latent dimension, so the horizontal axis is the latent space "
                "itself; the height is random and only separates the points."
            )
        if self.dimensions == 2:
            return "The model has two latent dimensions, so this is the latent space itself."
        return (
            f"The model has {self.dimensions} latent dimensions. What is seen is a projection, "
            f"fitted to the final means: {self.names[0]} across and {self.names[1]} upwards. "
            "Groups that overlap here may be apart in the other directions."
        )

    def apply(self, means: Floats) -> NDArray[np.float64]:
        """Maps latents [M, D] to points of the plane, float64 [M, 2].

        With one latent dimension each row gets a random height in (-1, 1), the same in
        every call, so that the points of a movie do not jump.
        """
        points = (means.astype(np.float64) - self.centre) @ self.axes.T
        if self.dimensions > 1:
            return points
        heights = np.random.Generator(np.random.Philox(key=0)).uniform(-1, 1, len(points))
        return np.column_stack([points[:, 0], heights])

    def lift(self, points: NDArray[np.float64]) -> Floats:
        """Maps points [n, K] of the plane to the latents on it, float32 [n, D]."""
        return (self.centre + points @ self.axes).astype(np.float32)

    def ticks(self, count: int) -> NDArray[np.float64]:
        """Coordinates at which images are decoded, ascending, float64 [K, count].

        For one or two latent dimensions, evenly spaced quantiles of the standard normal
        (Kingma and Welling 2014, appendix A); along principal components, evenly spaced
        over `REACH` standard deviations to both sides of the mean.

        Args:
            count: Number of images along each axis.
        """
        if not self.shares:
            quantiles = (np.arange(count) + 0.5) / count
            normal = np.array([NormalDist().inv_cdf(quantile) for quantile in quantiles])
            return np.tile(normal, (len(self.axes), 1))
        return self.deviations[:, None] * np.linspace(-REACH, REACH, count)


def fit_projection(means: Floats) -> Projection:
    """Fits the projection to means float32 [N, D], N and D at least 1."""
    dimensions = means.shape[1]
    wide = means.astype(np.float64)
    if dimensions <= 2:
        return Projection(
            dimensions, np.zeros(dimensions), np.eye(dimensions), (), wide.std(axis=0)
        )
    centre = wide.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(wide, rowvar=False, bias=True))
    axes = vectors[:, ::-1][:, :2].T
    # The sign of an eigenvector is arbitrary: its largest component is made positive.
    largest = axes[[0, 1], np.abs(axes).argmax(axis=1)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)[:, None]
    kept = np.clip(variances[::-1][:2], 0.0, None)
    total = max(float(np.clip(variances, 0.0, None).sum()), np.finfo(np.float64).tiny)
    first, second = (float(variance) / total for variance in kept)
    return Projection(dimensions, centre, axes, (first, second), np.sqrt(kept))


@dataclass(frozen=True)
class Window:
    """The part of the plane that axes show.

    Attributes:
        middle: x and y of the window's centre.
        half: Half of the window's width and height.
    """

    middle: tuple[float, float]
    half: tuple[float, float]

    @property
    def x(self) -> tuple[float, float]:
        """Left and right limit of the window."""
        return self.middle[0] - self.half[0], self.middle[0] + self.half[0]

    @property
    def y(self) -> tuple[float, float]:
        """Bottom and top limit of the window."""
        return self.middle[1] - self.half[1], self.middle[1] + self.half[1]

    def widened(self, other: "Window", limit: float) -> "Window":
        """Enlarges the window about its centre to contain another, by at most `limit`."""
        needed = max(
            max(middle - ends[0], ends[1] - middle) / half
            for middle, half, ends in zip(self.middle, self.half, (other.x, other.y), strict=True)
        )
        scale = min(max(needed, 1.0), limit)
        return Window(self.middle, (scale * self.half[0], scale * self.half[1]))


def fit_window(projection: Projection, points: NDArray[np.float64]) -> Window:
    """Fits a square window to points [N, 2]; the outermost 0.2 % on each side may be outside.

    With one latent dimension, the window is as high as the range of the random heights.
    """
    low, high = np.percentile(points, (0.2, 99.8), axis=0)
    x, y = (low + high) / 2
    spans = (high - low)[: projection.dimensions]
    half = max(0.54 * float(spans.max()), 1e-3)
    return (
        Window((x, 0.0), (half, 1.15))
        if projection.dimensions == 1
        else Window((x, y), (half, half))
    )
