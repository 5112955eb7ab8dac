"""The autoencoder: both terms of its objective, its shape, what it refuses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from training.errors import ConfigError
from training.models import DiagonalGaussian, Vae, bernoulli_nll, log_sigmoid
from training.presets import ModelConfig

SHAPE = (1, 4, 3)
CONFIG = ModelConfig(layers=((11, "relu"), (7, "tanh"), (5, "gelu")), latent_dim=3)

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def vae(scale: str = "log_var") -> Vae:
    torch.manual_seed(0)
    return Vae(ModelConfig(CONFIG.layers, CONFIG.latent_dim, scale), SHAPE)  # type: ignore[arg-type]


def test_kl_of_known_gaussians() -> None:
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 3.0]])
    log_var = torch.tensor([[0.0, 0.0], [0.0, 0.0], [float(np.log(4.0)), float(np.log(0.25))]])
    # 1/2 (m^2 + v - 1 - ln v) of each dimension, added up, by hand.
    wanted = [0.0, 2.5, 0.5 * (4 - 1 - np.log(4)) + 0.5 * (9 + 0.25 - 1 + np.log(4))]
    kl = DiagonalGaussian(mean, log_var).kl()
    assert kl.shape == (3,)
    np.testing.assert_allclose(kl.numpy(), wanted, rtol=1e-6)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 5), st.integers(1, 40))
def test_kl_is_summed_over_latent_dimensions_and_agrees_with_torch(
    seed: int, rows: int, dim: int
) -> None:
    mean, log_var = normal(seed, rows, dim), normal(seed + 1, rows, dim)
    wanted = [
        sum(0.5 * (m * m + np.exp(v) - 1 - v) for m, v in zip(mean_row, log_var_row, strict=True))
        for mean_row, log_var_row in zip(mean, log_var, strict=True)
    ]
    kl = DiagonalGaussian(torch.from_numpy(mean), torch.from_numpy(log_var)).kl()
    np.testing.assert_allclose(kl.numpy(), wanted, rtol=1e-10)
    reference = torch.distributions.kl_divergence(
        torch.distributions.Normal(torch.from_numpy(mean), torch.from_numpy(np.exp(log_var / 2))),
        torch.distributions.Normal(0.0, 1.0),
    ).sum(dim=1)
    np.testing.assert_allclose(kl.numpy(), reference.numpy(), rtol=1e-10)


@settings(deadline=None, max_examples=30)
@given(seeds, st.integers(1, 4))
def test_reconstruction_is_minus_log_likelihood_summed_over_pixels(seed: int, rows: int) -> None:
    logits = 3 * normal(seed, rows, *SHAPE)
    images = np.random.default_rng(seed).random((rows, *SHAPE))
    p = 1 / (1 + np.exp(-logits))
    wanted = -(images * np.log(p) + (1 - images) * np.log(1 - p)).sum(axis=(1, 2, 3))
    nll = bernoulli_nll(torch.from_numpy(logits), torch.from_numpy(images))
    assert nll.shape == (rows,)
    np.testing.assert_allclose(nll.numpy(), wanted, rtol=1e-9)


def test_reconstruction_of_one_bit_by_hand() -> None:
    logits = torch.tensor([0.0, 0.0, np.log(3.0), np.log(3.0)]).reshape(4, 1, 1, 1)
    bits = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1, 1)
    wanted = [np.log(2), np.log(2), np.log(4), np.log(4 / 3)]
    np.testing.assert_allclose(bernoulli_nll(logits, bits).numpy(), wanted, rtol=1e-6)


def test_reconstruction_does_not_saturate() -> None:
    logits = torch.tensor([-1000.0, 1000.0, -1000.0, 1000.0]).reshape(4, 1, 1, 1)
    bits = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(4, 1, 1, 1)
    assert bernoulli_nll(logits, bits).tolist() == [0.0, 0.0, 1000.0, 1000.0]


def test_sample_is_mean_plus_sigma_times_noise() -> None:
    mean, log_var, eps = (torch.from_numpy(normal(seed, 6, 3)) for seed in range(3))
    drawn = DiagonalGaussian(mean, log_var).sample(eps)
    wanted = mean.numpy() + np.sqrt(np.exp(log_var.numpy())) * eps.numpy()
    np.testing.assert_allclose(drawn.numpy(), wanted, rtol=1e-12)


@pytest.mark.parametrize("scale", ["log_var", "sigmoid"])
def test_gradients_flow_through_the_draw_into_every_weight(scale: str) -> None:
    model = vae(scale)
    images = torch.from_numpy(np.random.default_rng(0).random((9, *SHAPE), np.float32))
    posterior = model.encode(images)
    eps = torch.from_numpy(normal(1, 9, 3).astype(np.float32))
    loss = bernoulli_nll(model.decode(posterior.sample(eps)), images).mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def test_gradient_of_the_kl_is_the_one_derived_by_hand() -> None:
    mean, log_var = (torch.from_numpy(normal(seed, 5, 3)).requires_grad_() for seed in (0, 1))
    DiagonalGaussian(mean, log_var).kl().sum().backward()
    assert mean.grad is not None
    assert log_var.grad is not None
    np.testing.assert_allclose(mean.grad.numpy(), mean.detach().numpy(), rtol=1e-12)
    wanted = 0.5 * (np.exp(log_var.detach().numpy()) - 1)
    np.testing.assert_allclose(log_var.grad.numpy(), wanted, rtol=1e-9, atol=1e-12)


def test_log_sigmoid_is_within_1e_6_of_float64() -> None:
    x = torch.cat([
        torch.linspace(-100, 100, 400_001),
        torch.linspace(-1, 1, 100_001),
        torch.tensor([0.0, -0.0, 1e-30, -1e-30, 1e4, -1e4]),
    ])  # fmt: skip
    wanted = F.logsigmoid(x.double())
    assert (log_sigmoid(x).double() - wanted).abs().max() < 1e-6


def test_log_sigmoid_of_extremes() -> None:
    x = torch.tensor([-3e38, -1e6, 1e6, 3e38, float("inf"), float("-inf")])
    assert log_sigmoid(x).tolist() == [x[0].item(), -1e6, 0.0, 0.0, 0.0, float("-inf")]
    assert torch.isnan(log_sigmoid(torch.tensor([float("nan")]))).all()


def test_log_sigmoid_has_the_gradient_of_log_sigmoid() -> None:
    x = torch.linspace(-50, 50, 10_001, requires_grad=True)
    log_sigmoid(x).sum().backward()
    assert x.grad is not None
    wanted = torch.sigmoid(-x.detach().double())
    # At 0 itself the clamp and the absolute value have a kink each.
    away = x.detach() != 0
    assert (x.grad.double() - wanted).abs()[away].max() < 1e-5


@pytest.mark.parametrize("scale", ["log_var", "sigmoid"])
def test_scale_says_what_the_second_head_means(scale: str) -> None:
    model = vae(scale)
    with torch.no_grad():
        model.to_scale.weight.mul_(400)
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        posterior = model.encode(images)
        raw = model.to_scale(model.encoder(images.flatten(1)))
    assert raw.min() < -5
    assert raw.max() > 5
    if scale == "log_var":
        assert torch.equal(posterior.log_var, raw)
        return
    sigma = torch.exp(0.5 * posterior.log_var.double())
    np.testing.assert_allclose(sigma.numpy(), torch.sigmoid(raw.double()).numpy(), rtol=2e-6)


def shape_of(stack: nn.Sequential) -> list[tuple[int, int] | str]:
    return [
        (layer.in_features, layer.out_features) if isinstance(layer, nn.Linear)
        else type(layer).__name__
        for layer in stack
    ]  # fmt: skip


def test_decoder_is_the_mirror_image_of_the_encoder() -> None:
    model = vae()
    assert shape_of(model.encoder) == [(12, 11), "ReLU", (11, 7), "Tanh", (7, 5), "GELU"]
    assert shape_of(nn.Sequential(model.to_mean, model.to_scale)) == [(5, 3), (5, 3)]
    assert shape_of(model.decoder) == [(3, 5), "GELU", (5, 7), "Tanh", (7, 11), "ReLU"]
    assert shape_of(nn.Sequential(model.to_logits)) == [(11, 12)]


def test_shapes_of_encode_and_decode() -> None:
    model = vae()
    posterior = model.encode(torch.zeros(4, *SHAPE))
    assert posterior.mean.shape == posterior.log_var.shape == (4, 3)
    assert model.decode(posterior.mean).shape == (4, *SHAPE)


@pytest.mark.parametrize(
    ("layers", "latent_dim", "field", "got"),
    [
        (((8, "swishy"),), 2, "activation", "'swishy'"),
        (((8, ""),), 2, "activation", "''"),
        (((8, "relu"), (0, "relu")), 2, "layers", "0"),
        (((-3, "relu"),), 2, "layers", "-3"),
        ((), 2, "layers", "()"),
        (((8, "relu"),), 0, "latent_dim", "0"),
        (((8, "relu"),), -1, "latent_dim", "-1"),
    ],
)
def test_a_shape_that_cannot_be_is_refused_and_names_the_field(
    layers: tuple[tuple[int, str], ...], latent_dim: int, field: str, got: str
) -> None:
    with pytest.raises(ConfigError, match=f"{field}: got .*, wanted ") as caught:
        Vae(ModelConfig(layers, latent_dim), SHAPE)
    assert got in str(caught.value)
