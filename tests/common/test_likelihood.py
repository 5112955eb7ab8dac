"""Likelihoods against values worked out by hand in float64."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common import likelihood


@pytest.mark.parametrize("logit", [-100.0, -20.0, -1.0, 0.0, 0.5, 18.0, 90.0])
@pytest.mark.parametrize("pixel", [0.0, 0.25, 1.0])
def test_a_pixels_likelihood_does_not_saturate(logit, pixel):
    # log sigmoid(l) = -log(1 + e^-l), which log1p gives for either sign.
    log_on = -math.log1p(math.exp(-logit)) if logit > 0 else logit - math.log1p(math.exp(logit))
    log_off = log_on - logit
    wanted = -(pixel * log_on + (1 - pixel) * log_off)
    got = likelihood.bernoulli_nll(
        np.full((1, 1, 1, 1), logit, np.float32), np.full((1, 1, 1, 1), pixel, np.float32)
    )
    assert got[0] == pytest.approx(wanted, rel=1e-12)


def test_a_pixels_likelihood_is_exact_far_from_zero():
    logits = np.array([-1000, 1000, -1000, 1000], np.float32).reshape(4, 1, 1, 1)
    images = np.array([0, 1, 1, 0], np.float32).reshape(4, 1, 1, 1)
    assert likelihood.bernoulli_nll(logits, images).tolist() == [0.0, 0.0, 1000.0, 1000.0]


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_terms_are_sums_over_pixels_and_over_latent_dimensions(seed, rows):
    rng = np.random.default_rng(seed)
    logits = (4 * rng.standard_normal((rows, 1, 3, 4))).astype(np.float32)
    images = rng.random((rows, 1, 3, 4), np.float32)
    p = 1 / (1 + np.exp(-logits.astype(np.float64)))
    wanted = -(images * np.log(p) + (1 - images) * np.log1p(-p)).sum(axis=(1, 2, 3))
    nll = likelihood.bernoulli_nll(logits, images)
    assert (nll.shape, nll.dtype) == ((rows,), np.float64)
    np.testing.assert_allclose(nll, wanted, rtol=1e-5)
    mean, log_var = rng.standard_normal((2, rows, 2)).astype(np.float32)
    kl = likelihood.standard_kl(mean, log_var)
    assert (kl.shape, kl.dtype) == ((rows,), np.float64)
    by_hand = [
        sum(0.5 * (m**2 + np.exp(v) - 1 - v) for m, v in zip(*pair, strict=True))
        for pair in zip(mean.astype(np.float64), log_var.astype(np.float64), strict=True)
    ]
    np.testing.assert_allclose(kl, by_hand, rtol=1e-9, atol=1e-12)


def test_the_kl_of_gaussians_is_that_worked_out_by_hand():
    mean, log_var = np.array([[0.5, -2.0]], np.float32), np.array([[0.0, math.log(0.25)]])
    by_hand = sum(0.5 * (var + m * m - 1 - math.log(var)) for m, var in ((0.5, 1.0), (-2.0, 0.25)))
    got = likelihood.standard_kl(mean, log_var.astype(np.float32))
    assert got[0] == pytest.approx(by_hand, rel=1e-6)


def test_the_log_density_is_that_of_the_normal_distribution():
    z, mean = np.array([[1.0, 2.0]], np.float32), np.array([[0.0, 1.0]], np.float32)
    log_var = np.log(np.array([[4.0, 0.5]], np.float32))
    by_hand = sum(
        -0.5 * math.log(2 * math.pi * var) - (x - m) ** 2 / (2 * var)
        for x, m, var in ((1.0, 0.0, 4.0), (2.0, 1.0, 0.5))
    )
    assert likelihood.gaussian_log_density(z, mean, log_var)[0] == pytest.approx(by_hand, rel=1e-6)
    standard = -0.5 * (2 * math.log(2 * math.pi) + 5.0)
    assert likelihood.gaussian_log_density(z)[0] == pytest.approx(standard, rel=1e-12)


def test_the_importance_bound_is_the_log_mean_of_weights_without_overflow():
    log_weights = np.array([[-1000.0, -3.0], [-1001.0, -1.0], [-1002.0, -2.0]])
    bound = likelihood.ImportanceBound(2)
    for row in log_weights:
        bound.add(row)
    wanted = [
        1000 - math.log(sum(math.exp(-k) for k in range(3)) / 3),
        -math.log((math.exp(-3) + math.exp(-1) + math.exp(-2)) / 3),
    ]
    np.testing.assert_allclose(bound.nll(), wanted, rtol=1e-12)


def test_percentile_ranks_are_interpolated_in_the_table():
    table = tuple(float(10 + percent) for percent in range(101))
    got = likelihood.percentile(np.array([0.0, 10.0, 35.5, 110.0, 500.0]), table)
    np.testing.assert_allclose(got, [0, 0, 25.5, 100, 100])


@settings(max_examples=30)
@given(rows=st.integers(2, 40), cut=st.integers(1, 39), seed=st.integers(0, 100))
def test_a_rows_value_does_not_depend_on_the_rest_of_the_batch(rows, cut, seed):
    rng = np.random.default_rng(seed)
    cut = min(cut, rows - 1)
    logits = 20 * rng.standard_normal((rows, 3, 7, 5)).astype(np.float32)
    images = rng.random((rows, 3, 7, 5), np.float32)
    z, mean, log_var = (rng.standard_normal((rows, 37)).astype(np.float32) for _ in range(3))
    for function, arrays in (
        (likelihood.bernoulli_nll, (logits, images)),
        (likelihood.standard_kl, (mean, log_var)),
        (likelihood.gaussian_log_density, (z, mean, log_var)),
    ):
        whole = function(*arrays)
        halves = slice(cut), slice(cut, None)
        parts = [function(*(array[half] for array in arrays)) for half in halves]
        assert np.concatenate(parts).tobytes() == whole.tobytes()


def test_many_rows_have_the_bits_that_each_has_alone() -> None:
    rng = np.random.default_rng(3)
    logits = rng.normal(0, 9, (600, 1, 7, 9)).astype(np.float32)
    images = rng.random((600, 1, 7, 9), dtype=np.float32)
    together = likelihood.bernoulli_nll(logits, images)
    alone = [
        float(likelihood.bernoulli_nll(logits[row : row + 1], images[row : row + 1])[0])
        for row in range(600)
    ]
    assert together.tolist() == alone
    assert likelihood.bernoulli_nll(logits[:0], images[:0]).shape == (0,)
