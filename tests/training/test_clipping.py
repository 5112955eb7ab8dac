"""Gradient clipping, relative to the norms of recent steps."""

import math

import pytest
import torch
from torch import nn

from training.clipping import FIRST_STEPS, WINDOW, Clipping


def weights_with(norm: float) -> list[nn.Parameter]:
    """Two weights whose gradients have this norm together, and one without a gradient."""
    pair = [nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(()))]
    pair[0].grad = torch.tensor([0.48, 0.64]) * norm
    pair[1].grad = torch.tensor(0.6) * norm
    return [*pair, nn.Parameter(torch.zeros(3))]


def norm_of(weights: list[nn.Parameter]) -> float:
    return math.sqrt(
        sum(float(each.grad.square().sum()) for each in weights if each.grad is not None)
    )


def after(norms: list[float], clip: float = 5.0, skip: float = 100.0) -> Clipping:
    clipping = Clipping(clip, skip)
    for norm in norms:
        clipping.record(norm)
    return clipping


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
def test_a_gradient_is_clipped_relative_to_the_median_of_any_size(scale: float) -> None:
    clipping = after([scale, 3 * scale, 2 * scale] * 20)
    for norm, wanted in ((9.0, 9.0), (11.0, 10.0), (1e6, 10.0)):
        weights = weights_with(norm * scale)
        assert clipping.clip(weights) == pytest.approx(norm * scale)
        assert norm_of(weights) == pytest.approx(wanted * scale)
        assert weights[2].grad is None
    assert clipping.limit == pytest.approx(200 * scale)


def test_the_first_gradient_is_not_clipped_and_the_next_are_relative_to_it() -> None:
    clipping = after([])
    for wanted in (1e9, 5e9):
        weights = weights_with(wanted * wanted / 1e9)
        clipping.record(clipping.clip(weights))
        assert norm_of(weights) == pytest.approx(wanted)


def test_no_finite_gradient_is_refused_in_the_first_steps() -> None:
    clipping = after([1.0] * (FIRST_STEPS - 1))
    assert clipping.limit == math.inf
    clipping.record(1.0)
    assert clipping.limit == 100.0


def test_a_gradient_that_is_not_finite_is_reported_and_not_recorded() -> None:
    clipping = after([2.0] * FIRST_STEPS)
    for norm in (math.nan, math.inf):
        weights = weights_with(1.0)
        assert weights[0].grad is not None
        weights[0].grad[0] = norm
        length = clipping.clip(weights)
        assert not math.isfinite(length)
        clipping.record(length)
    assert clipping.limit == 200.0


def test_a_few_large_norms_leave_the_limits_and_a_lasting_change_moves_them() -> None:
    clipping = after([1.0] * WINDOW)
    for _ in range(WINDOW // 2 - 1):
        clipping.record(1e6)
        assert clipping.limit == 100.0
    for _ in range(WINDOW // 2):
        clipping.record(1e6)
    assert clipping.limit == 1e8
    assert len(clipping.state_dict()["norms"]) == WINDOW


def test_a_restored_clipping_has_the_same_limits() -> None:
    clipping = after([1.0 + index % 7 for index in range(FIRST_STEPS + 3)])
    again = Clipping(5.0, 100.0)
    again.load_state_dict(clipping.state_dict())
    for norm in (5.0, 80.0, 0.1) * WINDOW:
        assert again.limit == clipping.limit
        for each in (clipping, again):
            each.record(norm)
    assert again.state_dict() == clipping.state_dict()
