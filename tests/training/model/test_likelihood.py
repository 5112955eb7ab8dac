"""Likelihoods in torch: against those of `common.likelihood`, chosen by the data, learned."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from common import likelihood as measured
from common.likelihood import LEAST_LOG_SCALE
from training.model.config import Dense, ModelConfig
from training.model.likelihood import (
    SCALE_LEARNING_RATE,
    Bernoulli,
    Located,
    build_likelihood,
    level_counts,
    resolve,
    with_likelihood,
)
from training.model.preset import Preset
from training.model.train_config import TrainConfig
from training.presets import PRESETS

SHAPE = (3, 5, 4)
NETWORK = Dense(((4, "relu"),))
KINDS = {
    "bernoulli": ("bernoulli", 1),
    "gaussian": ("gaussian", 1),
    "logistic": ("logistic", 1),
    "mixture": ("logistic", 3),
}
LOCATED = [name for name in KINDS if name != "bernoulli"]


def built(kind: str, images: NDArray[np.uint8] | None = None) -> Bernoulli | Located:
    name, mixture = KINDS[kind]
    config = ModelConfig(NETWORK, 2, likelihood=name, mixture=mixture)  # type: ignore[arg-type]
    made = build_likelihood(config, SHAPE)
    if images is not None:
        made.begin(level_counts(images))
    return made


def pictures(seed: int = 0, rows: int = 6) -> NDArray[np.uint8]:
    """Random images with values at both edges."""
    rng = np.random.default_rng(seed)
    return rng.normal(120, 90, (rows, *SHAPE)).clip(0, 255).astype(np.uint8)


# --------------------------------------------------------- the same formulas


@settings(max_examples=60)
@given(st.sampled_from(sorted(KINDS)), st.integers(0, 2**32 - 1), st.floats(-7.5, 0))
def test_torch_and_numpy_compute_the_same_nats(kind, seed, log_scale):
    made = built(kind, pictures(seed)).double()
    if isinstance(made, Located):
        with torch.no_grad():
            made.log_scale.add_(log_scale)  # some below the bound
    torch.manual_seed(seed)
    output = torch.randn(6, made.width, *SHAPE[1:], dtype=torch.float64)
    images = pictures(seed + 1) / 255
    with torch.inference_mode():
        got = made.nll(output, torch.from_numpy(images)).numpy()
        parameters = made.parameters_of(output).numpy()
    np.testing.assert_allclose(got, measured.pixel_nll(made.name, parameters, images), rtol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_in_float32_they_agree_to_a_millionth(kind):
    made = built(kind, pictures())
    output = torch.randn(6, made.width, *SHAPE[1:], generator=torch.Generator().manual_seed(1))
    images = (pictures(1) / np.float32(255)).astype(np.float32)
    with torch.inference_mode():
        got = made.nll(output, torch.from_numpy(images)).numpy()
        parameters = made.parameters_of(output).numpy()
    wanted = measured.pixel_nll(made.name, parameters, images)
    np.testing.assert_allclose(got, wanted, rtol=2e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind):
    made = built(kind, pictures(rows=2)).double()
    images = torch.from_numpy(pictures(1, rows=2) / 255)
    output = torch.randn(
        2, made.width, *SHAPE[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(2)
    ).requires_grad_()
    assert torch.autograd.gradcheck(lambda given: made.nll(given, images), (output,))


@pytest.mark.parametrize("kind", LOCATED)
def test_a_scales_gradient_is_that_of_nats_per_dimension(kind):
    made, images = built(kind, pictures()).double(), torch.from_numpy(pictures(1) / 255)
    assert isinstance(made, Located)
    output = torch.randn(6, made.width, *SHAPE[1:], dtype=torch.float64)
    made.nll(output, images).mean().backward()
    gradient = made.log_scale.grad
    assert gradient is not None
    for index in range(len(made.log_scale)):
        nats = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                made.log_scale[index] += step
                nats.append(float(made.nll(output, images).mean()))
                made.log_scale[index] -= step
        wanted = (nats[0] - nats[1]) / 2e-5 / math.prod(SHAPE)
        assert float(gradient[index]) == pytest.approx(wanted, rel=1e-5, abs=1e-9)


# ---------------------------------------------------------- parameters and means


@pytest.mark.parametrize("kind", KINDS)
def test_parameters_have_the_layout_of_the_contract(kind):
    made, rows = built(kind, pictures()), 2
    if isinstance(made, Located):
        with torch.no_grad():
            made.log_scale.add_(torch.linspace(-1, 1, len(made.log_scale)))
    output = torch.randn(rows, made.width, *SHAPE[1:])
    with torch.inference_mode():
        parameters, mean = made.parameters_of(output), made.mean(output)
    assert mean.shape == (rows, *SHAPE)
    assert float(mean.min()) >= 0
    assert float(mean.max()) <= 1
    if kind == "bernoulli":
        assert torch.equal(parameters, output)
        assert torch.equal(mean, torch.sigmoid(output))
        return
    assert isinstance(made, Located)
    if kind == "mixture":
        logits, locations, scales = parameters.reshape(rows, 3, 3, *SHAPE).unbind(1)
        weights = logits.double().exp() / logits.double().exp().sum(dim=1, keepdim=True)
        wanted = (weights * locations.double().clamp(0, 1)).sum(dim=1)
        torch.testing.assert_close(mean.double(), wanted, rtol=0, atol=1e-6)
    else:
        locations, scales = parameters.reshape(rows, 2, *SHAPE).unbind(1)
        assert torch.equal(mean, locations.clamp(0, 1))
    # Constants: of all pixels, and of all channels under a Gaussian.
    assert torch.equal(scales, scales[:1, ..., :1, :1].expand_as(scales))
    assert len(scales.unique()) == {"gaussian": 1, "logistic": 3, "mixture": 9}[kind]


@pytest.mark.parametrize("kind", LOCATED)
def test_it_begins_with_the_moments_of_the_data(kind):
    images = pictures(rows=400)
    made = built(kind, images)
    values = np.moveaxis(images, 1, 0).reshape(3, -1) / 255
    zeros = torch.zeros(1, made.width, *SHAPE[1:])
    with torch.inference_mode():
        parameters = made.parameters_of(zeros).numpy()
    if kind == "mixture":
        locations = parameters[0, 9:18, 0, 0].reshape(3, 3)
        for component, share in enumerate((1 / 6, 3 / 6, 5 / 6)):
            wanted = np.quantile(values, share, axis=1)
            np.testing.assert_allclose(locations[component], wanted, atol=1.01 / 255)
        return
    np.testing.assert_allclose(parameters[0, :3, 0, 0], values.mean(axis=1), rtol=1e-5)
    scales = np.exp(parameters[0, 3:, 0, 0])
    deviations = values.std(axis=1)
    wanted = {
        "gaussian": np.full(3, np.sqrt((deviations**2).mean())),
        "logistic": deviations * math.sqrt(3) / math.pi,
    }[kind]
    np.testing.assert_allclose(scales, wanted, rtol=1e-5)


@pytest.mark.parametrize("kind", LOCATED)
@pytest.mark.parametrize("level", [0, 100, 255])
def test_constant_images_begin_and_end_finite(kind, level):
    images = np.full((8, *SHAPE), level, np.uint8)
    made = built(kind, images)
    output = torch.zeros(8, made.width, *SHAPE[1:], requires_grad=True)
    optimizer = torch.optim.Adam(made.parameters(), lr=SCALE_LEARNING_RATE)
    x = torch.from_numpy(images / np.float32(255))
    for _ in range(300):
        optimizer.zero_grad()
        nll = made.nll(output, x).mean()
        nll.backward()
        optimizer.step()
        assert math.isfinite(float(nll.detach()))
    with torch.inference_mode():
        scales = made.parameters_of(output)[0, -3:, 0, 0]
    assert float(scales.min()) >= LEAST_LOG_SCALE
    # A scale that was pushed against its bound leaves it again.
    far = torch.from_numpy(pictures(rows=8) / np.float32(255))
    for _ in range(300):
        optimizer.zero_grad()
        made.nll(output, far).mean().backward()
        optimizer.step()
    with torch.inference_mode():
        assert float(made.parameters_of(output)[0, -3:, 0, 0].min()) > LEAST_LOG_SCALE + 1


@pytest.mark.parametrize("kind", ["gaussian", "logistic"])
def test_a_scale_reaches_its_optimum_within_a_hundred_steps(kind):
    """From the deviation of the data to that of what is left, a twelfth of it."""
    rng = np.random.default_rng(0)
    images = rng.integers(40, 216, (64, *SHAPE), np.uint8)
    made = built(kind, images)
    x = torch.from_numpy(images / np.float32(255))
    noise = torch.from_numpy(rng.normal(0, 4, images.shape).astype(np.float32) / 255)
    assert isinstance(made, Located)
    output = (x + noise - made.centre[0]) / made.deviation[0]
    optimizer = torch.optim.Adam(made.parameters(), lr=SCALE_LEARNING_RATE)
    nats = []
    for step in range(1_000):
        optimizer.zero_grad()
        nll = made.nll(output, x).mean()
        nll.backward()
        optimizer.step()
        nats.append(float(nll.detach()) / math.prod(SHAPE))
        if step == 100:
            early = nats[-1]
    assert early - min(nats) < 0.01
    if kind == "gaussian":  # the optimal sigma of Rybkin et al. 2021: in closed form
        sigma = float(((x - made.location(output)) ** 2).mean().sqrt())
        assert float(made.log_scale.detach().exp()) == pytest.approx(sigma, rel=0.02)


# ----------------------------------------------------------------- auto, and bits


def preset(**model: object) -> Preset:
    config = ModelConfig(NETWORK, 2, **model)  # type: ignore[arg-type]
    return Preset(config, TrainConfig(), "")


def of_bits(share: float, rows: int = 50) -> NDArray[np.uint8]:
    """Images with a share of values near 0 or 1 (within 0.1), as many near 0 as near 1."""
    count = rows * math.prod(SHAPE)
    values = np.full(count, 128, np.uint8)
    near = round(share * count)
    values[:near] = np.resize([0, 25, 230, 255], near)
    return np.random.default_rng(0).permutation(values).reshape(rows, *SHAPE)


@pytest.mark.parametrize(
    ("share", "chosen"), [(1.0, "bernoulli"), (0.9, "bernoulli"), (0.89, "logistic")]
)
def test_auto_is_bernoulli_where_nine_tenths_of_the_values_are_bits(share, chosen):
    resolved = resolve(preset(), of_bits(share))
    assert resolved.model.likelihood == chosen
    assert resolved.train.binarize == (chosen == "bernoulli")


@pytest.mark.parametrize(("level", "chosen"), [(25, "bernoulli"), (26, "logistic"),
                                               (229, "logistic"), (230, "bernoulli")])  # fmt: skip
def test_a_tenth_of_the_range_is_25_levels(level, chosen):
    images = np.full((4, *SHAPE), level, np.uint8)
    assert resolve(preset(), images).model.likelihood == chosen


@pytest.mark.parametrize("name", ["bernoulli", "gaussian", "logistic"])
def test_what_is_chosen_by_hand_stays(name):
    for images in (of_bits(1.0), of_bits(0.0)):
        resolved = resolve(preset(likelihood=name), images)
        assert resolved.model.likelihood == name
        assert resolved.train.binarize == (name == "bernoulli")


def test_grey_values_stay_where_they_are_wanted():
    grey = dataclasses.replace(preset(), train=TrainConfig(binarize=False))
    assert not resolve(grey, of_bits(1.0)).train.binarize


def test_every_preset_of_bits_is_as_before():
    for given_ in PRESETS.values():
        resolved = resolve(given_, of_bits(0.95))
        if given_.model.likelihood == "auto":
            assert resolved == with_likelihood(given_, "bernoulli")
            assert resolved.train == given_.train


def test_of_many_images_some_are_counted():
    images = np.zeros((10_000, 1, 2, 2), np.uint8)
    images[5_000:] = 255
    counts = level_counts(images)
    assert counts.shape == (1, 256)
    assert counts.sum() < images.size
    assert counts[0, 0] == counts[0, 255] == counts.sum() / 2
