"""The maximum mean discrepancy, between latents and the prior, for WAE-MMD."""

import torch
from torch import Tensor

# Scales of the kernels that are summed (Tolstikhin et al. 2018, in their code), as multiples of the
# mean squared distance of two draws from N(0, I): one alone sees differences of its own size only.
_SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def squared_mmd(z: Tensor, drawn: Tensor) -> Tensor:
    """The unbiased estimate of the squared maximum mean discrepancy of two distributions.

    As Tolstikhin et al. 2018, algorithm 2: with a sum of inverse multiquadratic kernels,
    k(x, y) = C / (C + |x - y|^2), whose heavy tails see outliers. It may be negative.

    Args:
        z: Draws from one distribution, [M, D], M at least 2.
        drawn: Draws from the other, N(0, I), [M, D].

    Returns:
        A scalar, which is 0 in expectation if the distributions are equal.
    """
    count, dim = z.shape
    within = _kernel(z, z, dim) + _kernel(drawn, drawn, dim)
    # A draw and itself are no pair.
    pairs = within.sum() - within.diagonal().sum()
    return pairs / (count * (count - 1)) - 2.0 * _kernel(z, drawn, dim).mean()


def _kernel(x: Tensor, y: Tensor, dim: int) -> Tensor:
    """The sum of the kernels of each pair of rows of x [M, D] and y [N, D]: [M, N]."""
    square = (x.square().sum(dim=1)[:, None] + y.square().sum(dim=1)[None] - 2.0 * x @ y.T).clamp(
        min=0.0
    )
    total = torch.zeros_like(square)
    for scale in _SCALES:
        wide = 2.0 * dim * scale
        total = total + wide / (wide + square)
    return total
