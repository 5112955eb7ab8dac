"""Statistics of encoded images in the latent space, to notice when the images change."""

import threading
from collections.abc import Iterator
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

#: Time constant of the statistics' exponential decay, in encoded images.
HORIZON = 10_000.0

# Pending posteriors are accumulated once there are this many batches, rows or latent values.
_PENDING_BATCHES, _PENDING_ROWS, _PENDING_VALUES = 64, 1024, 2**20


class _Moments:
    """Exponentially decayed sums over rows, for each latent dimension or channel.

    Each row of a new batch has weight 1; a batch of n rows scales the weights of all earlier
    rows by exp(-n / HORIZON), so that the weights add up to about HORIZON.

    Args:
        dims: D, number of latent dimensions, or of channels of spatial latents.

    Attributes:
        weight: Sum of the rows' weights.
        sums: Weighted sums of mean, squared mean and KL, float64 [3, D].
        has_kl: Whether the model has log-variances, and so a KL.
    """

    def __init__(self, dims: int):
        self.weight = 0.0
        self.sums = np.zeros((3, dims))
        self.has_kl = False

    def add(self, rows: int, sums: NDArray[np.float64], has_kl: bool) -> None:
        decay = np.exp(-rows / HORIZON)
        self.weight = decay * self.weight + rows
        self.sums = decay * self.sums + sums
        self.has_kl = has_kl


def _sums(mean: NDArray[np.float32], log_var: NDArray[np.float32] | None) -> NDArray[np.float64]:
    """Returns the sums over rows of mean, squared mean and KL to N(0, 1): float64 [3, D]."""
    wide = mean.astype(np.float64)
    first, second = wide.sum(axis=0), np.einsum("nd,nd->d", wide, wide)
    if log_var is None:
        return np.stack([first, second, np.zeros_like(first)])
    with np.errstate(over="ignore", invalid="ignore"):
        # exp in float32, which SIMD computes eight at a time; the sum in float64.
        variance_less_log = (np.exp(log_var) - log_var).sum(axis=0, dtype=np.float64)
        kl = 0.5 * (second - len(mean) + variance_less_log)
    return np.stack([first, second, kl])


def _channels_last(latents: NDArray[np.float32]) -> NDArray[np.float32]:
    """Makes a row of each position of spatial latents: [N, c, h, w] to [N * h * w, c]."""
    return np.moveaxis(latents, 1, -1).reshape(-1, latents.shape[1])


class _Pending:
    """Posteriors that have not been accumulated yet.

    Attributes:
        posteriors: Means and log-variances of batches.
        rows: Number of their rows.
        values: Number of the values in their means.
    """

    __slots__ = ("posteriors", "rows", "values")

    def __init__(self) -> None:
        self.posteriors: list[_Posteriors] = []
        self.rows = self.values = 0


_Posteriors = tuple[NDArray[np.float32], NDArray[np.float32] | None]


class LatentStatistics(Collector):
    """Statistics of the posteriors of recent images, to be compared with the prior N(0, I).

    Where latents are spatial, dimensions are channels: values at all positions count alike, and all
    images, whatever their size.

    In a latent dimension that the model uses well, the posterior means have a mean near 0, and
    their variance plus the posteriors' mean variance is near 1, the variance of the prior. A
    dimension whose KL is near 0 is collapsed: its posterior is the prior for every image. Values
    that drift away from those of the training images show that the images have changed.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._served: set[tuple[str, str]] = set()
        self._moments: dict[tuple[str, str], _Moments] = {}
        # Accumulated in bulk: some twenty NumPy calls are costly for one row, cheap for many.
        self._pending: dict[tuple[str, str], _Pending] = {}

    def retain(self, served: set[tuple[str, str]]) -> None:
        """Keeps the statistics of the given models only, each as (name, version)."""
        with self._lock:
            self._served = served
            self._moments = {
                key: moments for key, moments in self._moments.items() if key in served
            }

    def add(
        self, key: tuple[str, str], mean: NDArray[np.float32], log_var: NDArray[np.float32] | None
    ) -> None:
        """Adds a batch of posteriors.

        Args:
            key: Name and version of the model.
            mean: Means, float32 [N, D] or [N, c, h, w].
            log_var: Log-variances of the same shape, or None.
        """
        with self._lock:
            pending = self._pending.get(key)
            if pending is None:
                pending = self._pending[key] = _Pending()
            pending.posteriors.append((mean, log_var))
            pending.rows += len(mean)
            pending.values += mean.size
            if (
                len(pending.posteriors) < _PENDING_BATCHES
                and pending.rows < _PENDING_ROWS
                and pending.values < _PENDING_VALUES
            ):
                return
            del self._pending[key]
        self._accumulate(key, pending.posteriors)

    def _accumulate(self, key: tuple[str, str], posteriors: list[_Posteriors]) -> None:
        # Images may have different sizes, and a model may have been replaced by one of the same
        # name and version but other dimensions.
        for (shape, with_log_var), group in groupby(
            posteriors, lambda batch: (batch[0].shape[1:], batch[1] is not None)
        ):
            means, log_vars = zip(*group, strict=True)
            mean = np.concatenate(means)
            log_var = np.concatenate(log_vars) if with_log_var else None
            rows, positions = len(mean), 1
            if len(shape) == 3:
                positions = shape[1] * shape[2]
                mean = _channels_last(mean)
                log_var = None if log_var is None else _channels_last(log_var)
            # Of spatial latents, averages over the positions of each image.
            sums = _sums(mean, log_var) / positions
            if rows == 0 or not np.isfinite(sums).all():
                if len(means) > 1:
                    # Leave out only the batches that are not finite.
                    for batch in zip(means, log_vars, strict=True):
                        self._accumulate(key, [batch])
                continue
            with self._lock:
                # A call in flight may end on a version that is no longer served.
                if key in self._served:
                    moments = self._moments.get(key)
                    if moments is None or moments.sums.shape != sums.shape:
                        moments = self._moments[key] = _Moments(shape[0])
                    moments.add(rows, sums, with_log_var)

    def collect(self) -> Iterator[Metric]:
        """Yields the mean, variance and KL of each dimension of each model."""
        labels = ["model", "version", "dim"]
        families = [
            GaugeMetricFamily(f"latentserve_latent_{name}", text, labels=labels)
            for name, text in (
                (
                    "mean",
                    "Mean of the encoded means over about the last 10,000 images; ideally 0.",
                ),
                (
                    "variance",
                    "Variance of the encoded means over the same images; ideally 1 minus the "
                    "posteriors' mean variance.",
                ),
                (
                    "kl_nats",
                    "KL of the posteriors to N(0, 1) over the same images; near 0 if collapsed.",
                ),
            )
        ]
        with self._lock:
            pending, self._pending = self._pending, {}
        for key, batches in pending.items():
            self._accumulate(key, batches.posteriors)
        with self._lock:
            averages = [
                (key, moments.sums / moments.weight, moments.has_kl)
                for key, moments in self._moments.items()
            ]
        for (model, version), (first, second, kl), has_kl in averages:
            statistics = [first, np.maximum(second - first**2, 0.0), kl]
            for family, values in zip(families, statistics[: 3 if has_kl else 2], strict=False):
                for dim, value in enumerate(values):
                    family.add_metric([model, version, str(dim)], float(value))
        yield from families
