"""Likelihoods of pixels against sums over levels, integrals, and arithmetic by hand."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from common import likelihood
from common.likelihood import LEAST_LOG_SCALE, Array, Likelihood
from common.pixels import to_unit

#: All 256 levels as images of one pixel.
LEVELS = to_unit(np.arange(256, dtype=np.uint8)).reshape(256, 1, 1, 1)

locations = st.floats(-3.0, 4.0, width=32)
log_scales = st.floats(LEAST_LOG_SCALE, 3.0, width=32)
seeds = st.integers(0, 2**32 - 1)


def constant(value: float, shape: tuple[int, ...] = LEVELS.shape) -> Array:
    return np.full(shape, value, np.float32)


def parameters(likelihood_: Likelihood, seed: int, rows: int, mixture: int = 1) -> Array:
    """Random parameters of images of 3 x 5 x 4, as a decoder could put them out."""
    rng = np.random.default_rng(seed)
    groups = {"bernoulli": 1, "gaussian": 2, "logistic": 2 if mixture == 1 else 3 * mixture}
    given = rng.standard_normal((rows, groups[likelihood_] * 3, 5, 4)).astype(np.float32)
    if likelihood_ != "bernoulli":
        given[:, -3 * mixture :] = rng.uniform(-7, 0, (rows, 3 * mixture, 5, 4))
    return given


@settings(max_examples=300)
@given(locations, log_scales)
@example(0.0, LEAST_LOG_SCALE)
@example(1.0, LEAST_LOG_SCALE)
@example(-1.0, LEAST_LOG_SCALE)
@example(2.0, -3.0)
@example(0.5, 3.0)
def test_the_probabilities_of_the_levels_sum_to_one(location, log_scale):
    nll = likelihood.logistic_nll(constant(location), constant(log_scale), LEVELS)
    assert np.isfinite(nll).all()
    assert math.fsum(np.exp(-nll)) == pytest.approx(1.0, abs=1e-9)


@settings(max_examples=100)
@given(seeds, st.integers(2, 7))
def test_those_of_a_mixture_too_and_are_the_weighted_ones_of_its_components(seed, components):
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal(components).astype(np.float32)
    centres = rng.uniform(-0.5, 1.5, components).astype(np.float32)
    scales = rng.uniform(LEAST_LOG_SCALE, 0, components).astype(np.float32)
    row = np.concatenate([weights, centres, scales]).reshape(1, -1, 1, 1)
    nll = likelihood.mixture_nll(np.repeat(row, 256, axis=0), LEVELS)
    assert math.fsum(np.exp(-nll)) == pytest.approx(1.0, abs=1e-9)
    shares = np.exp(weights.astype(np.float64)) / np.exp(weights.astype(np.float64)).sum()
    wanted = sum(
        share * np.exp(-likelihood.logistic_nll(constant(centre), constant(scale), LEVELS))
        for share, centre, scale in zip(shares, centres, scales, strict=True)
    )
    np.testing.assert_allclose(np.exp(-nll), wanted, rtol=1e-9, atol=1e-300)


@settings(max_examples=100)
@given(st.floats(-0.25, 1.25, width=32), st.floats(-5.0, 1.0, width=32), st.integers(0, 255))
def test_a_level_has_the_probability_of_the_interval_around_it(location, log_scale, level):
    scale = 255 * math.exp(log_scale)

    def below(edge: float) -> np.longdouble:
        return 1 / (1 + np.exp(-np.longdouble((edge - 255 * location) / scale)))

    upper = 1 if level == 255 else below(level + 0.5)
    wanted = upper - (0 if level == 0 else below(level - 0.5))
    got = likelihood.logistic_nll(
        constant(location, (1, 1, 1, 1)), constant(log_scale, (1, 1, 1, 1)), LEVELS[[level]]
    )
    # The difference cancels, where the formula does not.
    assert math.exp(-got[0]) == pytest.approx(float(wanted), rel=1e-6, abs=1e-15)


@pytest.mark.parametrize("log_scale", [LEAST_LOG_SCALE, -4.0, -1.0, 0.5])
@pytest.mark.parametrize("mean", [-0.3, 0.0, 0.4, 1.0])
def test_the_gaussian_density_of_levels_integrates_to_one(mean, log_scale):
    wide = 12 * math.exp(log_scale)
    x = np.linspace(mean - wide, mean + wide, 20_001, dtype=np.float64)
    rows = x.reshape(-1, 1, 1, 1)
    # In float64: the steps of float32 would be too coarse for the least scale.
    density = np.exp(
        -likelihood.gaussian_nll(constant(mean, rows.shape), constant(log_scale, rows.shape), rows)
    )
    assert density.sum() * 255 * (x[1] - x[0]) == pytest.approx(1.0, abs=1e-6)


def test_the_gaussian_is_the_density_of_values_from_0_to_255():
    mean, scale, level = 100 / 255, 20 / 255, 130
    wanted = math.exp(-0.5 * (30 / 20) ** 2) / (20 * math.sqrt(2 * math.pi))
    got = likelihood.gaussian_nll(
        constant(mean, (1, 1, 1, 1)), constant(math.log(scale), (1, 1, 1, 1)), LEVELS[[level]]
    )
    assert got[0] == pytest.approx(-math.log(wanted), rel=1e-6)


def test_gaussian_and_logistic_compare_where_a_scale_covers_many_levels():
    """A density of levels is the probability of one: both code the same image in as many nats."""
    wide = -1.5
    gaussian = likelihood.gaussian_nll(constant(0.5), constant(wide), LEVELS)
    logistic = likelihood.logistic_nll(
        constant(0.5), constant(wide + math.log(math.sqrt(3) / math.pi)), LEVELS
    )
    inside = slice(60, 196)
    assert np.abs(gaussian[inside] - logistic[inside]).max() < 0.4
    assert 4 < gaussian[inside].mean() < 6


@settings(max_examples=50)
@given(
    st.sampled_from([("bernoulli", 1), ("gaussian", 1), ("logistic", 1), ("logistic", 4)]),
    seeds,
    st.integers(1, 5),
)
def test_a_rows_nats_have_the_same_bits_in_every_batch(kind, seed, rows):
    name, mixture = kind
    given = parameters(name, seed, rows, mixture)
    images = to_unit(np.random.default_rng(seed).integers(0, 256, (rows, 3, 5, 4), np.uint8))
    whole = likelihood.pixel_nll(name, given, images)
    assert (whole.dtype, whole.shape) == (np.float64, (rows,))
    for row in range(rows):
        alone = likelihood.pixel_nll(name, given[row : row + 1].copy(), images[row : row + 1])
        assert alone.tobytes() == whole[row : row + 1].tobytes()


def test_blocks_do_not_change_the_bits():
    images = to_unit(np.random.default_rng(0).integers(0, 256, (300, 3, 32, 32), np.uint8))
    for name, groups in (("gaussian", 2), ("logistic", 2), ("logistic", 6)):
        given = np.random.default_rng(1).uniform(-2, 0, (300, 3 * groups, 32, 32))
        given = given.astype(np.float32)
        whole = likelihood.pixel_nll(name, given, images)
        halves = [likelihood.pixel_nll(name, given[cut], images[cut]) for cut in
                  (slice(0, 151), slice(151, 300))]  # fmt: skip
        assert np.concatenate(halves).tobytes() == whole.tobytes()


@settings(max_examples=30)
@given(st.sampled_from([("gaussian", 1), ("logistic", 1), ("logistic", 3)]), seeds)
def test_nats_are_sums_over_the_pixels_in_the_documented_layout(kind, seed):
    name, mixture = kind
    given = parameters(name, seed, 2, mixture)
    images = to_unit(np.random.default_rng(seed).integers(0, 256, (2, 3, 5, 4), np.uint8))
    wanted = np.zeros(2)
    for channel, y, x in itertools.product(range(3), range(5), range(4)):
        pixel = given[:, channel::3, y : y + 1, x : x + 1]
        wanted += likelihood.pixel_nll(
            name, pixel, images[:, channel : channel + 1, y : y + 1, x : x + 1]
        )
    np.testing.assert_allclose(likelihood.pixel_nll(name, given, images), wanted, rtol=1e-12)


@pytest.mark.parametrize("location", [-100.0, 0.0, 0.5, 1.0, 100.0])
@pytest.mark.parametrize("log_scale", [LEAST_LOG_SCALE, 0.0, 20.0])
def test_far_off_locations_and_scales_give_finite_nats(location, log_scale):
    for name in ("gaussian", "logistic"):
        given = np.concatenate([constant(location), constant(log_scale)], axis=1)
        assert np.isfinite(likelihood.pixel_nll(name, given, LEVELS)).all()


def test_a_location_beyond_an_edge_makes_the_edge_certain():
    nll = likelihood.logistic_nll(constant(1.02), constant(LEAST_LOG_SCALE), LEVELS)
    assert nll[255] < 1e-9
    assert nll[254] > 20


def test_floats_are_rounded_to_the_nearest_level_by_the_logistic_alone():
    rng = np.random.default_rng(3)
    levels = rng.integers(0, 256, (4, 3, 5, 4))
    exact = to_unit(levels.astype(np.uint8))
    near = ((levels + rng.uniform(-0.49, 0.49, levels.shape)) / 255).clip(0, 1).astype(np.float32)
    given = parameters("logistic", 3, 4)
    assert (
        likelihood.pixel_nll("logistic", given, near).tobytes()
        == likelihood.pixel_nll("logistic", given, exact).tobytes()
    )
    assert (
        likelihood.pixel_nll("gaussian", given, near)
        != likelihood.pixel_nll("gaussian", given, exact)
    ).all()


def test_even_odds_of_256_levels_are_eight_bits_per_dimension():
    assert likelihood.bits_per_dimension(12 * math.log(256), 12) == pytest.approx(8.0)
    # A very wide logistic has nearly all of its mass at the edges; of a mixture as even as can be
    # no level is more than a little off.
    row = np.zeros((256, 9, 1, 1), np.float32)
    row[:, 3:6, 0, 0] = [0.15, 0.5, 0.85]
    row[:, 6:, 0, 0] = -2.2
    nll = likelihood.mixture_nll(row, LEVELS)
    assert likelihood.bits_per_dimension(float(nll.mean()), 1) == pytest.approx(8.0, abs=0.3)
