"""The autoencoder: KL, likelihood, sampling, gradients, shapes, and what it refuses."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from training.errors import ConfigError
from training.model.config import Conv, Dense, ModelConfig, PriorConfig
from training.model.likelihood import Bernoulli
from training.model.vae import DiagonalGaussian, Vae, gaussian_log_prob

SHAPE = (1, 4, 3)
DENSE = Dense(((11, "relu"), (7, "tanh"), (5, "gelu")))
CONV = Conv((4, 4), (1,), (1,), encoder_trunk=6, decoder_trunk=5)
PRIOR = PriorConfig("flow-gmm", components=4, couplings=2, width=5)

seeds = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> NDArray[np.float64]:
    return np.random.default_rng(seed).standard_normal(shape)


def vae(network: Dense | Conv = DENSE, classes: int = 0, **changes: Any) -> Vae:
    torch.manual_seed(0)
    return Vae(ModelConfig(network, 3, **changes), SHAPE, classes)


def test_kl_of_gaussians_worked_out_by_hand() -> None:
    mean = torch.tensor([[0.0, 0.0], [1.0, -2.0], [0.0, 3.0]])
    log_var = torch.tensor([[0.0, 0.0], [0.0, 0.0], [float(np.log(4.0)), float(np.log(0.25))]])
    # The sum over dimensions of 1/2 (m^2 + v - 1 - ln v).
    wanted = [0.0, 2.5, 0.5 * (4 - 1 - np.log(4)) + 0.5 * (9 + 0.25 - 1 + np.log(4))]
    kl = DiagonalGaussian(mean, log_var).kl()
    assert kl.shape == (3,)
    np.testing.assert_allclose(kl.numpy(), wanted, rtol=1e-6)


@settings(max_examples=30)
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


@settings(max_examples=30)
@given(seeds, st.integers(1, 4))
def test_reconstruction_is_minus_log_likelihood_summed_over_pixels(seed: int, rows: int) -> None:
    logits = 3 * normal(seed, rows, *SHAPE)
    images = np.random.default_rng(seed).random((rows, *SHAPE))
    p = 1 / (1 + np.exp(-logits))
    wanted = -(images * np.log(p) + (1 - images) * np.log(1 - p)).sum(axis=(1, 2, 3))
    nll = Bernoulli(SHAPE).nll(torch.from_numpy(logits), torch.from_numpy(images))
    assert nll.shape == (rows,)
    np.testing.assert_allclose(nll.numpy(), wanted, rtol=1e-9)


def test_reconstruction_of_one_bit_by_hand() -> None:
    logits = torch.tensor([0.0, 0.0, np.log(3.0), np.log(3.0)]).reshape(4, 1, 1, 1)
    bits = torch.tensor([0.0, 1.0, 0.0, 1.0]).reshape(4, 1, 1, 1)
    wanted = [np.log(2), np.log(2), np.log(4), np.log(4 / 3)]
    np.testing.assert_allclose(Bernoulli(SHAPE).nll(logits, bits).numpy(), wanted, rtol=1e-6)


def test_reconstruction_does_not_saturate() -> None:
    logits = torch.tensor([-1000.0, 1000.0, -1000.0, 1000.0]).reshape(4, 1, 1, 1)
    bits = torch.tensor([0.0, 1.0, 1.0, 0.0]).reshape(4, 1, 1, 1)
    assert Bernoulli(SHAPE).nll(logits, bits).tolist() == [0.0, 0.0, 1000.0, 1000.0]


def test_sample_is_mean_plus_sigma_times_noise() -> None:
    mean, log_var, eps = (torch.from_numpy(normal(seed, 6, 3)) for seed in range(3))
    drawn = DiagonalGaussian(mean, log_var).sample(eps)
    wanted = mean.numpy() + np.sqrt(np.exp(log_var.numpy())) * eps.numpy()
    np.testing.assert_allclose(drawn.numpy(), wanted, rtol=1e-12)


def test_a_draw_from_a_plain_autoencoder_is_its_point() -> None:
    mean = torch.from_numpy(normal(0, 6, 3))
    drawn = DiagonalGaussian(mean, None).sample(torch.from_numpy(normal(1, 2, 6, 3)))
    assert drawn.shape == (2, 6, 3)
    assert torch.equal(drawn[0], mean)
    assert torch.equal(drawn[1], mean)


def test_log_densities_agree_with_torch() -> None:
    mean, log_var = (torch.from_numpy(normal(seed, 6, 3)) for seed in range(2))
    z = torch.from_numpy(normal(2, 4, 6, 3))  # several draws per row
    reference = torch.distributions.Normal(mean, torch.exp(0.5 * log_var)).log_prob(z).sum(-1)
    np.testing.assert_allclose(DiagonalGaussian(mean, log_var).log_prob(z), reference, rtol=1e-12)
    np.testing.assert_allclose(gaussian_log_prob(z, mean, log_var), reference, rtol=1e-12)


def test_a_posterior_converts_to_another_precision() -> None:
    posterior = DiagonalGaussian(torch.ones(2, 3), torch.zeros(2, 3)).to(torch.float64)
    assert (posterior.mean.dtype, posterior.log_var.dtype) == (torch.float64, torch.float64)
    assert DiagonalGaussian(torch.ones(2, 3), None).to(torch.bfloat16).log_var is None


@pytest.mark.parametrize("network", [DENSE, CONV], ids=["dense", "conv"])
@pytest.mark.parametrize("scale", ["log_var", "sigmoid"])
def test_gradients_flow_through_the_draw_into_every_weight(
    network: Dense | Conv, scale: str
) -> None:
    model = vae(network, scale=scale)
    with torch.no_grad():
        # A block's last convolution begins at zero, so that its first has no gradient yet.
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    images = torch.from_numpy(np.random.default_rng(0).random((9, *SHAPE), np.float32))
    posterior = model.encode(images)
    eps = torch.from_numpy(normal(1, 9, 3).astype(np.float32))
    loss = model.likelihood.nll(model.decode(posterior.sample(eps)), images).mean()
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


@pytest.mark.parametrize("scale", ["log_var", "sigmoid"])
def test_scale_selects_the_meaning_of_the_second_head(scale: str) -> None:
    model = vae(scale=scale)
    images = torch.rand(50, *SHAPE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        model.to_scale.weight.mul_(2_000)
        model.to_scale.bias.zero_()
        model.to_scale.bias.copy_(-model.to_scale(model.encoder(images)).mean(dim=0))
    with torch.inference_mode():
        posterior = model.encode(images)
        raw = model.to_scale(model.encoder(images))
    assert raw.min() < -5
    assert raw.max() > 5
    if scale == "log_var":
        assert torch.equal(posterior.log_var, raw)
        return
    sigma = torch.exp(0.5 * posterior.log_var.double())
    np.testing.assert_allclose(sigma.numpy(), torch.sigmoid(raw.double()).numpy(), rtol=2e-6)


@pytest.mark.parametrize("scale", ["log_var", "sigmoid"])
def test_posteriors_of_all_images_begin_with_the_initial_scale(scale: str) -> None:
    torch.manual_seed(0)
    model = Vae(ModelConfig(CONV, 3, scale=scale, initial_scale=-3.0), SHAPE)
    log_var = model.encode(torch.rand(5, *SHAPE)).log_var
    begun = -3.0 if scale == "log_var" else 2 * math.log(1 / (1 + math.exp(3)))
    torch.testing.assert_close(log_var, torch.full((5, 3), begun))
    log_var.sum().backward()
    assert model.to_scale.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("network", [DENSE, CONV], ids=["dense", "conv"])
def test_shapes_of_encode_and_decode(network: Dense | Conv) -> None:
    model = vae(network)
    posterior = model.encode(torch.zeros(4, *SHAPE))
    assert posterior.mean.shape == posterior.log_var.shape == (4, 3)
    assert model.decode(posterior.mean).shape == (4, *SHAPE)


def test_a_plain_autoencoder_has_no_second_head() -> None:
    model = vae(posterior="delta", prior=PriorConfig("none"))
    assert model.to_scale is None
    assert model.encode(torch.zeros(4, *SHAPE)).log_var is None
    assert model.prior is None


@pytest.mark.parametrize(
    ("kind", "classes", "labels"),
    [("standard", 10, 0), ("gmm", 10, 10), ("flow-gmm", 3, 3), ("flow", 10, 0), ("gmm", 0, 0),
     ("gmm", 1, 0)],
)  # fmt: skip
def test_a_model_has_as_many_labels_as_its_prior_has_classes(
    kind: str, classes: int, labels: int
) -> None:
    assert vae(classes=classes, prior=PriorConfig(kind)).labels == labels


def test_every_weight_belongs_to_the_autoencoder_or_to_the_prior() -> None:
    model = vae(prior=PRIOR)
    ours, priors = model.autoencoder_parameters(), model.prior_parameters()
    assert len(ours) + len(priors) == len(list(model.parameters()))
    assert not set(map(id, ours)) & set(map(id, priors))
    assert set(map(id, priors)) == set(map(id, model.prior.parameters()))
    assert vae().prior_parameters() == []
    assert len(vae().autoencoder_parameters()) == len(list(vae().parameters()))


def test_a_model_on_the_meta_device_refuses_what_a_real_one_does() -> None:
    with torch.device("meta"):
        Vae(ModelConfig(CONV, 3, prior=PRIOR), SHAPE, 4)
        with pytest.raises(ConfigError, match="activation: got 'swishy', wanted one of"):
            Vae(ModelConfig(Dense(((8, "swishy"),)), 2), SHAPE)
