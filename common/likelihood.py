"""Likelihoods of images under a model, from its logits, latents and densities.

Every function returns nats, one float64 per row. It sums in float64 over rows that are
contiguous in memory, so that a row's value does not depend on the rest of its batch.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Nats = NDArray[np.float64]

# Rows that are computed at a time: in float64 they take eight times the memory of their pixels.
_BLOCK_ROWS = 256


def bernoulli_nll(logits: Array, images: Array) -> Nats:
    """-log p(x|z), summed over pixels, [N].

    Computed as softplus(l) - x * l, which does not saturate: for |l| >= 18 a float32
    sigmoid can be exactly 0 or 1, and its logarithm infinite.

    Args:
        logits: Output l of the decoder, float32 [N, C, H, W].
        images: Targets x, float32 [N, C, H, W] in [0, 1].
    """
    result = np.empty(len(logits))
    for start in range(0, len(logits), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        wide = logits[block].reshape(len(logits[block]), -1).astype(np.float64)
        terms = np.logaddexp(0.0, wide) - images[block].reshape(len(wide), -1) * wide
        result[block] = terms.sum(axis=1)
    return result


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
