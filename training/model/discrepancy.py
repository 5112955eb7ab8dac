"""How far the latents of a batch together are from where they should be."""

import torch
from torch import Tensor
from torch.nn import functional as F

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


def squared_class_offset(means: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The unbiased estimate of the squared distance of the mean of a class from that of all.

    The squared mean of a class is estimated by the products of different rows of it, so the result
    may be negative, and a class with a single row in the batch is left out.

    Args:
        means: Posterior means, [N, D].
        labels: Their classes, int64 [N].
        classes: K, the number of classes.

    Returns:
        A scalar, the mean over the rows, which is 0 in expectation if all classes have one mean.
    """
    rows = len(means)
    members = F.one_hot(labels, classes).to(means.dtype)
    counts = members.sum(dim=0)
    squares = means.square().sum(dim=1)
    of_classes = (members.T @ means).square().sum(dim=1) - members.T @ squares
    together = means.sum(dim=0).square().sum() - squares.sum()
    several = (counts > 1.0).to(means.dtype)
    # The n (n - 1) products of a class, weighed by its share n / N of the rows.
    within = (several * of_classes / (counts - 1.0).clamp(min=1.0)).sum() / rows
    share = (several * counts).sum() / rows
    return within - share * together / max(1, rows * (rows - 1))


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
