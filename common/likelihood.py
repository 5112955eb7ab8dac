"""How likely images are under a model, from its logits and densities: NumPy alone.

All in nats, float64, one value a row. Sums over pixels and over latent dimensions, in
float64, of rows that lie in memory one after the other: a row's sum does not depend on
the rows beside it.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Nats = NDArray[np.float64]


def bernoulli_nll(logits: Array, images: Array) -> Nats:
    """-log p(x|z) summed over pixels: softplus(l) - x * l, which does not saturate.

    A float32 sigmoid is exactly 0 or 1 from |l| >= 18 on, and its logarithm infinite.

    Args:
        logits: float32 [N, C, H, W].
        images: float32 [N, C, H, W] in [0, 1].
    """
    wide = logits.reshape(len(logits), -1).astype(np.float64)
    terms = np.logaddexp(0.0, wide) - images.reshape(len(images), -1) * wide
    return np.asarray(terms.sum(axis=1))


def standard_kl(mean: Array, log_var: Array) -> Nats:
    """KL(N(mean, exp(log_var)) || N(0, I)) summed over latent dimensions.

    In closed form (Kingma and Welling 2014, appendix B).

    Args:
        mean: float32 [N, D].
        log_var: float32 [N, D].
    """
    m, v = mean.astype(np.float64), log_var.astype(np.float64)
    return np.asarray(0.5 * (m * m + np.exp(v) - 1.0 - v).sum(axis=1))


def gaussian_log_density(z: Array, mean: Array | float = 0.0, log_var: Array | float = 0.0) -> Nats:
    """Log N(z; mean, exp(log_var)) summed over latent dimensions.

    Args:
        z: float32 [N, D].
        mean: float32 [N, D], or 0.
        log_var: float32 [N, D], or 0.
    """
    v = np.asarray(log_var, np.float64)
    away = z.astype(np.float64) - mean
    return np.asarray(-0.5 * (math.log(2.0 * math.pi) + v + away * away * np.exp(-v)).sum(axis=1))


class ImportanceBound:
    """The importance-weighted bound on -log p(x) (Burda, Grosse and Salakhutdinov 2016).

    Draws are added one after the other, so that the bound does not depend on how many
    were computed at a time.

    Args:
        rows: N.
    """

    def __init__(self, rows: int):
        self._total = np.full(rows, -np.inf)
        self._draws = 0

    def add(self, log_weights: Nats) -> None:
        """Takes log p(x, z) / q(z|x) of one more draw of each row, [N]."""
        self._total = np.logaddexp(self._total, log_weights)
        self._draws += 1

    def nll(self) -> Nats:
        """-log 1/K sum_k p(x, z_k) / q(z_k|x) of each row, [N]."""
        return np.asarray(math.log(self._draws) - self._total)


def percentile(elbo: Nats, table: tuple[float, ...]) -> Nats:
    """How many percent of the training set score below, 0 to 100.

    Args:
        elbo: Scores, [N].
        table: The 0th to 100th percentile of the training set's scores.
    """
    return np.asarray(np.interp(elbo, table, np.arange(101.0)))
