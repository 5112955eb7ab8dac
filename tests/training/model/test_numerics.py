"""Logarithms without Log: values, gradients and extremes against torch in float64."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from training.model.numerics import log_sigmoid, log_sum_exp


def test_log_sigmoid_is_within_1e_6_of_float64() -> None:
    x = torch.cat([
        torch.linspace(-100, 100, 400_001),
        torch.linspace(-1, 1, 100_001),
        torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4]),
    ])  # fmt: skip
    wanted = F.logsigmoid(x.double())
    assert (log_sigmoid(x).double() - wanted).abs().max() < 1e-6


def test_log_sigmoid_is_finite_and_right_at_extremes() -> None:
    x = torch.tensor([-3e38, -1e6, 1e6, 3e38, float("inf"), float("-inf")])
    assert log_sigmoid(x).tolist() == [x[0].item(), -1e6, 0.0, 0.0, 0.0, float("-inf")]
    assert torch.isnan(log_sigmoid(torch.tensor([float("nan")]))).all()


def test_log_sigmoid_has_the_gradient_of_log_sigmoid() -> None:
    x = torch.linspace(-50, 50, 10_001, requires_grad=True)
    log_sigmoid(x).sum().backward()
    assert x.grad is not None
    wanted = torch.sigmoid(-x.detach().double())
    # Not at 0, where the clamp and the absolute value are not differentiable.
    away = x.detach() != 0
    assert (x.grad.double() - wanted).abs()[away].max() < 1e-5


def rows_of(seed: int, rows: int, count: int, spread: float, centre: float) -> torch.Tensor:
    draw = np.random.default_rng(seed)
    return torch.from_numpy(centre + spread * draw.standard_normal((rows, count)))


seeds = st.integers(0, 2**32 - 1)
spreads = st.sampled_from([0.0, 1e-6, 0.1, 1.0, 10.0, 1e3, 1e5])
centres = st.sampled_from([0.0, -1.0, 50.0, -1e3, 1e6])


@settings(max_examples=150)
@given(seeds, st.integers(1, 3), st.integers(1, 5000), spreads, centres)
def test_log_sum_exp_and_its_gradient_are_torchs(
    seed: int, rows: int, count: int, spread: float, centre: float
) -> None:
    x = rows_of(seed, rows, count, spread, centre).requires_grad_()
    result, wanted = log_sum_exp(x), torch.logsumexp(x, dim=-1)
    assert result.shape == (rows,)
    size = max(1.0, abs(centre), spread)
    np.testing.assert_allclose(result.detach(), wanted.detach(), rtol=0, atol=1e-12 * size)
    (gradient,) = torch.autograd.grad(result.sum(), x)
    np.testing.assert_allclose(gradient, torch.softmax(x.detach(), -1), rtol=1e-8, atol=1e-10)


@settings(max_examples=60)
@given(seeds, st.integers(1, 5000), st.sampled_from([0.0, 1.0, 30.0]))
def test_log_sum_exp_in_float32_is_accurate_to_float32(
    seed: int, count: int, spread: float
) -> None:
    x = rows_of(seed, 2, count, spread, 0.0).float()
    wanted = torch.logsumexp(x.double(), dim=-1)
    size = max(1.0, wanted.abs().max().item())
    assert (log_sum_exp(x).double() - wanted).abs().max() < 2e-6 * size


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 33, 1023, 1024, 4999, 5000])
def test_log_sum_exp_of_equal_terms_is_the_logarithm_of_their_number(count: int) -> None:
    """The largest sum there is, which takes the most iterations."""
    result = log_sum_exp(torch.full((1, count), -7.0, dtype=torch.float64))
    assert result.item() == pytest.approx(math.log(count) - 7.0, abs=1e-12)


def test_log_sum_exp_ignores_a_term_of_weight_0() -> None:
    x = torch.tensor([[0.0, -1e4], [-1e4, 3.0], [-1e4, -1e4]])
    result = log_sum_exp(x)
    assert result[:2].tolist() == [0.0, 3.0]
    assert result[2].item() == pytest.approx(-1e4 + math.log(2), abs=1e-2)


def test_log_sum_exp_has_second_derivatives_no_worse_than_torchs() -> None:
    x = rows_of(0, 1, 7, 1.0, 0.0)
    ours, torchs = (
        torch.autograd.functional.hessian(lambda x, f=f: f(x).sum(), x)
        for f in (log_sum_exp, lambda x: torch.logsumexp(x, dim=-1))
    )
    np.testing.assert_allclose(ours, torchs, atol=1e-8)
