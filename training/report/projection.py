"""How latents of any dimension are put on a flat picture, and how that is named.

Two dimensions are shown as they are, one as a line, and more as their first two
principal components. A story has one projection, fitted to its final means, which all
its pictures and all frames of its movie share.
"""

from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from training.report.story import Floats

#: Standard deviations to either side over which a plane of principal components is shown.
REACH = 2.5


@dataclass(frozen=True)
class Projection:
    """An affine map from latents to the plane.

    Attributes:
        dimensions: D of the latents.
        centre: float64 [D], what is mapped to the origin.
        axes: float64 [K, D], rows of length 1; K = 2, or 1 where D is 1.
        shares: Share of the variance of each axis, [K]; empty where nothing is left out.
        deviations: Standard deviation of the fitted means along each axis, float64 [K].
    """

    dimensions: int
    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    shares: tuple[float, ...]
    deviations: NDArray[np.float64]

    @property
    def names(self) -> tuple[str, ...]:
        """What to write at each axis."""
        if not self.shares:
            return ("latent z",) if self.dimensions == 1 else ("latent z₁", "latent z₂")
        return tuple(
            f"principal component {index} ({100 * share:.0f}\N{NO-BREAK SPACE}% of the variance)"
            for index, share in enumerate(self.shares, 1)
        )

    @property
    def sentence(self) -> str:
        """What is seen, for a caption."""
        if self.dimensions == 1:
            return (
                "The model has one latent dimension, so the horizontal axis is the latent space "
                "itself; the height is chance and only keeps the points apart."
            )
        if self.dimensions == 2:
            return "The model has two latent dimensions, so this is the latent space itself."
        return (
            f"The model has {self.dimensions} latent dimensions. What is seen is a projection, "
            f"fitted to the final means: {self.names[0]} across and {self.names[1]} upwards. "
            "Groups that lie on one another here may be apart in the directions that are not seen."
        )

    def apply(self, means: Floats) -> NDArray[np.float64]:
        """Maps latents [M, D] to points of the plane, float64 [M, 2].

        A single dimension gets a height in (-1, 1) that is the same for each row every
        time, so that points of a movie do not jump.
        """
        points = (means.astype(np.float64) - self.centre) @ self.axes.T
        if self.dimensions > 1:
            return points
        heights = np.random.Generator(np.random.Philox(key=0)).uniform(-1, 1, len(points))
        return np.column_stack([points[:, 0], heights])

    def lift(self, points: NDArray[np.float64]) -> Floats:
        """Maps points [n, K] of the plane back to the latents that lie on it, [n, D]."""
        return (self.centre + points @ self.axes).astype(np.float32)

    def ticks(self, count: int) -> NDArray[np.float64]:
        """Where `count` images to each axis are decoded, ascending, float64 [K, count].

        In latents that are seen whole, at even quantiles of the standard normal
        (Kingma and Welling 2014, appendix A); along principal components, evenly over
        `REACH` standard deviations to either side.
        """
        if not self.shares:
            quantiles = (np.arange(count) + 0.5) / count
            normal = np.array([NormalDist().inv_cdf(each) for each in quantiles])
            return np.tile(normal, (len(self.axes), 1))
        return self.deviations[:, None] * np.linspace(-REACH, REACH, count)


def fit_projection(means: Floats) -> Projection:
    """Chooses the projection for means float32 [N, D], N and D at least 1."""
    dimensions = means.shape[1]
    wide = means.astype(np.float64)
    if dimensions <= 2:
        return Projection(
            dimensions, np.zeros(dimensions), np.eye(dimensions), (), wide.std(axis=0)
        )
    centre = wide.mean(axis=0)
    variances, vectors = np.linalg.eigh(np.cov(wide, rowvar=False, bias=True))
    axes = vectors[:, ::-1][:, :2].T
    # An eigenvector has two signs: the one whose largest part is positive.
    largest = axes[[0, 1], np.abs(axes).argmax(axis=1)]
    axes = axes * np.where(largest < 0, -1.0, 1.0)[:, None]
    kept = np.clip(variances[::-1][:2], 0.0, None)
    total = max(float(np.clip(variances, 0.0, None).sum()), np.finfo(np.float64).tiny)
    first, second = (float(each) / total for each in kept)
    return Projection(dimensions, centre, axes, (first, second), np.sqrt(kept))


@dataclass(frozen=True)
class Window:
    """The part of the plane that is shown.

    Attributes:
        middle: x and y of its middle.
        half: Half its width and half its height.
    """

    middle: tuple[float, float]
    half: tuple[float, float]

    @property
    def x(self) -> tuple[float, float]:
        """Left and right."""
        return self.middle[0] - self.half[0], self.middle[0] + self.half[0]

    @property
    def y(self) -> tuple[float, float]:
        """Bottom and top."""
        return self.middle[1] - self.half[1], self.middle[1] + self.half[1]

    def widened(self, other: "Window", most: float) -> "Window":
        """Grown about its middle to hold another, but to `most` times its size at most."""
        needed = max(
            max(middle - ends[0], ends[1] - middle) / half
            for middle, half, ends in zip(self.middle, self.half, (other.x, other.y), strict=True)
        )
        scale = min(max(needed, 1.0), most)
        return Window(self.middle, (scale * self.half[0], scale * self.half[1]))


def fit_window(projection: Projection, points: NDArray[np.float64]) -> Window:
    """A square about points [N, 2] that few outliers may leave; flat for one dimension."""
    low, high = np.percentile(points, (0.2, 99.8), axis=0)
    x, y = (low + high) / 2
    spans = (high - low)[: projection.dimensions]
    half = max(0.54 * float(spans.max()), 1e-3)
    return (
        Window((x, 0.0), (half, 1.15))
        if projection.dimensions == 1
        else Window((x, y), (half, half))
    )
