"""Logarithms that, exported to ONNX, give a row the same bits in every batch.

onnxruntime's Log and Softplus round the tail of an array differently from the rest
(measured on 1.32): a row's value would depend on its place in the batch. These functions use
only Exp, Sigmoid and arithmetic.
"""

import torch
from torch import Tensor


def log_sigmoid(x: Tensor) -> Tensor:
    """Computes log(sigmoid(x)) elementwise, without cancellation.

    It is min(x, 0) - log(1 + e) with e = exp(-|x|), and log(1 + e) = 2 artanh(e / (2 + e)).
    The argument of artanh is at most 1/3, so seven terms of its series are enough for float32.
    """
    small = torch.sigmoid(-x.abs())  # e / (1 + e)
    y = small / (2.0 - small)  # e / (2 + e)
    square = y * y
    series = torch.full_like(y, 1.0 / 13.0)
    for divisor in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = series * square + 1.0 / divisor
    return x.clamp(max=0.0) - 2.0 * y * series


def log_sum_exp(x: Tensor) -> Tensor:
    """Computes log(sum(exp(x))) over the last axis, [N, K] to [N].

    With the largest term factored out, the sum is in [1, K]. Its logarithm t solves
    exp(t) = sum and is found by Halley's method, which cubes the error in each iteration.
    """
    largest = x.amax(dim=-1, keepdim=True)
    total = torch.exp(x - largest).sum(dim=-1)
    # The first iteration, from t = 0; its result is never above the logarithm.
    t = 2.0 * (total - 1.0) / (total + 1.0)
    for _ in range(_steps(x.shape[-1])):
        power = torch.exp(t)
        t = t + 2.0 * (total - power) / (total + power)
    return t + largest.squeeze(-1)


def _steps(count: int) -> int:
    """Iterations that find log(count) to float32 precision; each moves t by at most 2."""
    return 4 + int(count).bit_length() // 2
