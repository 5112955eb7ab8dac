"""Densities of latents, the importance-weighted bound, and percentiles of scores."""

import math

import numpy as np

from common.likelihood.pixels import Array, Nats


def standard_kl(mean: Array, log_var: Array) -> Nats:
    """KL(N(mean, exp(log_var)) || N(0, I)), [N].

    In closed form (Kingma and Welling 2014, appendix B).

    Args:
        mean: float32 [N, D].
        log_var: float32 [N, D].
    """
    m, v = mean.astype(np.float64), log_var.astype(np.float64)
    return np.asarray(0.5 * (m * m + np.exp(v) - 1.0 - v).sum(axis=1))


def gaussian_log_density(z: Array, mean: Array | float = 0.0, log_var: Array | float = 0.0) -> Nats:
    """Log N(z; mean, exp(log_var)), [N].

    Args:
        z: float32 [N, D].
        mean: float32 [N, D], or 0.
        log_var: float32 [N, D], or 0.
    """
    v = np.asarray(log_var, np.float64)
    d = z.astype(np.float64) - mean
    return np.asarray(-0.5 * (math.log(2.0 * math.pi) + v + d * d * np.exp(-v)).sum(axis=1))


class ImportanceBound:
    """Accumulates the importance-weighted bound on -log p(x) of N images.

    The bound of Burda, Grosse and Salakhutdinov 2016. Draws are added one by one, so that
    the bits of the bound do not depend on how many draws are computed in a batch.

    Args:
        rows: N.
    """

    def __init__(self, rows: int):
        self._total = np.full(rows, -np.inf)
        self._draws = 0

    def add(self, log_weights: Nats) -> None:
        """Adds a draw: its log-weights log p(x, z) / q(z|x), [N]."""
        self._total = np.logaddexp(self._total, log_weights)
        self._draws += 1

    def nll(self) -> Nats:
        """-log 1/K sum_k p(x, z_k) / q(z_k|x) over the K draws so far, [N]."""
        return np.asarray(math.log(self._draws) - self._total)


def percentile(elbo: Nats, table: tuple[float, ...]) -> Nats:
    """Percentile rank of each score among the scores of the training images, 0 to 100, [N].

    Args:
        elbo: Scores, [N] in nats: the ELBO as a loss (negated), at the posterior mean.
        table: The 0th to 100th percentile of the training images' scores, ascending.
    """
    return np.asarray(np.interp(elbo, table, np.arange(101.0)))
