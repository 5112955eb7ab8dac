"""Posteriors that a caller joins: one or several, with draws, in half precision."""

import numpy as np
import pytest

from latentserve.client import Posterior

GENERATOR = np.random.default_rng(0)
MEAN = GENERATOR.standard_normal((3, 2, 4, 4)).astype(np.float32)
LOG_VAR = -GENERATOR.random((3, 2, 4, 4)).astype(np.float32) * 4
NOISE = GENERATOR.standard_normal((3, 2, 4, 4)).astype(np.float32)
Z = MEAN + np.exp(LOG_VAR / 2) * NOISE


def test_precisions_add_up_and_the_prior_counts_once():
    one = Posterior(MEAN, LOG_VAR).joined()
    precision = np.exp(-LOG_VAR)
    total = precision.sum(axis=0) - 2
    np.testing.assert_allclose(one.log_var[0], -np.log(total), atol=1e-5)
    np.testing.assert_allclose(one.mean[0], (precision * MEAN).sum(axis=0) / total, atol=1e-5)
    assert one.mean.shape == one.log_var.shape == (1, 2, 4, 4)
    assert one.mean.dtype == one.log_var.dtype == np.float32
    assert (one.std < np.exp(LOG_VAR / 2).min(axis=0)).all()
    assert one.z is None


def test_a_single_posterior_stays_as_it_is():
    one = Posterior(MEAN[:1], LOG_VAR[:1], Z[:1], 7).joined()
    assert (one.mean == MEAN[:1]).all()
    assert (one.log_var == LOG_VAR[:1]).all()
    np.testing.assert_allclose(one.z, Z[:1], atol=1e-6)
    assert one.seed == 7


def test_a_draw_has_the_noise_of_the_first_image():
    one = Posterior(MEAN, LOG_VAR, Z, 7).joined()
    np.testing.assert_allclose((one.z - one.mean) / one.std, NOISE[:1], atol=1e-4)
    assert one.z.dtype == np.float32


def test_a_posterior_that_is_wider_than_the_prior_takes_nothing_off_the_others():
    log_var = np.array([[-2.0, 3.0], [4.0, 3.0]], np.float32)
    one = Posterior(np.ones((2, 2), np.float32), log_var).joined()
    np.testing.assert_allclose(one.log_var, [[-2.0, 3.0]], atol=1e-6)


def test_posteriors_that_are_nearly_points_do_not_overflow():
    mean = np.array([[1.0], [3.0]], np.float32)
    one = Posterior(mean, np.full((2, 1), -300.0, np.float32)).joined()
    np.testing.assert_allclose(one.mean, [[2.0]])
    np.testing.assert_allclose(one.log_var, [[-300 - np.log(2)]])


def test_latents_of_half_precision_are_joined_in_float32():
    half = Posterior(MEAN.astype(np.float16), LOG_VAR.astype(np.float16), Z.astype(np.float16), 7)
    one, exact = half.joined(), Posterior(MEAN, LOG_VAR, Z, 7).joined()
    assert one.mean.dtype == one.z.dtype == np.float32
    np.testing.assert_allclose(one.mean, exact.mean, atol=0.02)
    np.testing.assert_allclose(one.z, exact.z, atol=0.02)


def test_points_of_a_plain_autoencoder_cannot_be_joined():
    with pytest.raises(ValueError, match="log_var: got None, of a plain autoencoder, wanted"):
        Posterior(MEAN, None).joined()
