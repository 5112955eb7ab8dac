"""The maximum mean discrepancy, against a sum over pairs and against what it is for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.model.discrepancy import squared_mmd

SCALES = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


def normal(rows: int, dim: int, seed: int) -> Tensor:
    drawn = np.random.default_rng(seed).standard_normal((rows, dim))
    return torch.from_numpy(drawn)


def by_pairs(z: Tensor, drawn: Tensor) -> float:
    """Tolstikhin et al. 2018, algorithm 2, one pair after the other."""
    count, dim = z.shape

    def kernel(x: Tensor, y: Tensor) -> float:
        square = float((x - y).square().sum())
        return sum(2 * dim * scale / (2 * dim * scale + square) for scale in SCALES)

    total = 0.0
    for left in range(count):
        for right in range(count):
            total -= 2 * kernel(z[left], drawn[right]) / count**2
            if left != right:
                within = kernel(z[left], z[right]) + kernel(drawn[left], drawn[right])
                total += within / (count * (count - 1))
    return total


@given(st.integers(2, 9), st.integers(1, 5), st.integers(0, 2**32 - 1), st.floats(-3, 3))
def test_it_is_the_sum_over_pairs(rows: int, dim: int, seed: int, shift: float) -> None:
    z, drawn = normal(rows, dim, seed) + shift, normal(rows, dim, seed + 1)
    assert squared_mmd(z, drawn).item() == pytest.approx(by_pairs(z, drawn), abs=1e-9)


def test_it_is_0_in_expectation_for_equal_distributions_and_above_for_others() -> None:
    def mean(change: float, scale: float) -> float:
        values = [
            squared_mmd(scale * normal(64, 4, 2 * seed) + change, normal(64, 4, 2 * seed + 1))
            for seed in range(60)
        ]
        return float(torch.stack(values).mean())

    assert abs(mean(0.0, 1.0)) < 0.003
    assert mean(0.5, 1.0) > 0.03
    assert mean(0.0, 0.5) > 0.03
    assert mean(3.0, 1.0) > mean(1.0, 1.0) > mean(0.5, 1.0)


def test_its_gradient_moves_latents_to_the_prior() -> None:
    z = (0.2 * normal(200, 2, 1) + 2.0).requires_grad_()
    optimizer = torch.optim.Adam([z], 0.05)
    for step in range(300):
        optimizer.zero_grad()
        squared_mmd(z, normal(200, 2, 10 + step)).backward()
        optimizer.step()
    found = z.detach()
    # From a mean of 2 and a variance of 0.04.
    np.testing.assert_allclose(found.mean(dim=0).numpy(), 0, atol=0.2)
    assert ((found.var(dim=0) > 0.5) & (found.var(dim=0) < 2)).all()
    assert squared_mmd(found, normal(200, 2, 5)) < 0.01
