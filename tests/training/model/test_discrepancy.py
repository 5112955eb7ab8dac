"""The maximum mean discrepancy, against a sum over pairs and against what it is for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from training.model.discrepancy import squared_class_offset, squared_mmd

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


def offset_by_pairs(means: Tensor, labels: list[int]) -> float:
    """Products of different rows of a class, less those of different rows of all."""
    rows = range(len(labels))
    pairs = [(left, right) for left in rows for right in rows if left != right]
    everywhere = sum(float(means[left] @ means[right]) for left, right in pairs) / len(pairs)
    total = 0.0
    for label in set(labels):
        of_class = [
            float(means[left] @ means[right])
            for left, right in pairs
            if labels[left] == labels[right] == label
        ]
        if of_class:
            share = labels.count(label) / len(labels)
            total += share * (sum(of_class) / len(of_class) - everywhere)
    return total


@pytest.mark.parametrize(
    "labels",
    [[0, 0, 1, 1, 1, 3], [2, 2, 2], [0, 1, 2, 3], [0], [3, 3, 0, 0, 1, 2, 2, 2]],
    ids=["one alone", "one class", "all alone", "one row", "all classes"],
)
def test_the_offset_of_classes_is_that_of_their_pairs(labels: list[int]) -> None:
    means = normal(len(labels), 3, 4) + 1.0
    got = squared_class_offset(means, torch.tensor(labels), 4).item()
    assert got == pytest.approx(offset_by_pairs(means, labels) if len(labels) > 1 else 0, abs=1e-9)


def test_the_offset_of_classes_is_unbiased() -> None:
    draws = torch.Generator().manual_seed(0)
    centres = torch.tensor([[1.0, 0.0], [-1.0, 0.5], [0.0, 3.0]]).double()
    shares = torch.tensor([0.5, 0.3, 0.2]).double()
    together = shares @ centres
    wanted = float(shares @ (centres - together).square().sum(dim=1))
    for scale, expected in ((1.0, wanted), (0.0, 0.0)):
        values = []
        for seed in range(400):
            labels = torch.multinomial(shares, 40, replacement=True, generator=draws)
            means = normal(40, 2, seed) + scale * centres[labels] + 5.0
            values.append(squared_class_offset(means, labels, 3))
        found = torch.stack(values)
        error = float(found.std()) / 20
        assert abs(float(found.mean()) - expected) < 4 * error
        assert error < 0.1
