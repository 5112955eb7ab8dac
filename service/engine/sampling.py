"""What is drawn: which rows of a seed's noise, of which class, and how z is made of them."""

import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

#: The label that means any class.
ANY_LABEL = -1


@dataclass(frozen=True)
class Draw:
    """Which rows of which seed's noise to draw.

    Attributes:
        seed: 0 to 2^64 - 1.
        offset: Index of the first row.
    """

    seed: int
    offset: int = 0


def fresh_seed() -> int:
    """A seed nobody has used: 53 random bits, exact in every language's numbers."""
    return secrets.randbits(53)


def drawn(mean: Array, log_var: Array, eps: Array) -> Array:
    """Z = mean + exp(log_var / 2) * eps, the draw of a posterior (Kingma and Welling 2014).

    Args:
        mean: [N, D].
        log_var: [N, D].
        eps: Standard normal noise, [N, D].
    """
    z: Array = mean + np.exp(np.float32(0.5) * log_var) * eps
    return z
