"""Sampling: seeds and row indices of noise, and the reparameterisation of a posterior."""

import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: The label that means any class.
ANY_LABEL = -1


@dataclass(frozen=True)
class Draw:
    """The noise of a request: row i is row `offset` + i in the sequence of the seed.

    Attributes:
        seed: Key of the generator, 0 to 2^64 - 1.
        offset: Index of the first row, 0 to 2^64 - 1.
    """

    seed: int
    offset: int = 0


def fresh_seed() -> int:
    """A random seed of 53 bits, which JavaScript clients can represent exactly."""
    return secrets.randbits(53)


def drawn(mean: Array, log_var: Array, eps: Array) -> Array:
    """Posterior samples by reparameterisation (Kingma and Welling 2014, section 2.4).

    Args:
        mean: float32 [N, D].
        log_var: float32 [N, D].
        eps: Standard normal noise, float32 [N, D].

    Returns:
        mean + exp(log_var / 2) * eps, float32 [N, D].
    """
    z: Array = mean + np.exp(np.float32(0.5) * log_var) * eps
    return z
