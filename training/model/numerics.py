"""Logarithms whose ONNX graphs give a row the same bits in every batch.

onnxruntime's Log and Softplus round the tail of an array unlike its body (measured
on 1.32), so that a row's value would depend on its place in the batch. These functions
use Exp, Sigmoid and arithmetic alone.
"""

import torch
from torch import Tensor


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)), without cancellation.

    min(x, 0) - log(1 + e) with e = exp(-|x|), where log(1 + e) = 2 artanh(e / (2 + e))
    and the argument is at most 1/3, so that seven terms of the series reach float32.
    """
    small = torch.sigmoid(-x.abs())  # e / (1 + e)
    y = small / (2.0 - small)  # e / (2 + e)
    square = y * y
    series = torch.full_like(y, 1.0 / 13.0)
    for divisor in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = series * square + 1.0 / divisor
    return x.clamp(max=0.0) - 2.0 * y * series


def log_sum_exp(x: Tensor) -> Tensor:
    """log(sum(exp(x))) over the last axis, [N, K] to [N].

    With the largest term factored out the sum is in [1, K]. Its logarithm t solves
    exp(t) = sum and is found by Halley's method, which cubes the error in each step.
    """
    largest = x.amax(dim=-1, keepdim=True)
    total = torch.exp(x - largest).sum(dim=-1)
    # The first iterate from t = 0, which is never above the logarithm.
    t = 2.0 * (total - 1.0) / (total + 1.0)
    for _ in range(_steps(x.shape[-1])):
        power = torch.exp(t)
        t = t + 2.0 * (total - power) / (total + power)
    return t + largest.squeeze(-1)


def _steps(count: int) -> int:
    """Iterations until log(count) is exact in float32: each moves t by at most 2."""
    return 4 + int(count).bit_length() // 2
