"""The objectives, against values worked out in NumPy from the networks' outputs."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from training.model.config import Dense, ModelConfig, PriorConfig
from training.model.discrepancy import squared_class_offset, squared_mmd
from training.model.objectives import Terms, autoencoder_terms, kl_at, prior_nlls
from training.model.train_config import TrainConfig
from training.model.vae import Vae

SHAPE = (1, 3, 2)
ROWS, DIM, CLASSES = 5, 3, 4
GMM = PriorConfig("gmm", components=8)
FLOW = PriorConfig("flow-gmm", components=8, couplings=2, width=6)


def vae(seed: int = 0, classes: int = CLASSES, **changes: Any) -> Vae:
    """A model in float64 with random changes to its initial prior."""
    torch.manual_seed(seed)
    model = Vae(ModelConfig(Dense(((7, "tanh"),)), DIM, **changes), SHAPE, classes)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
        if model.prior is not None and model.prior.classes:
            model.prior.class_weights.copy_(torch.tensor([0.1, 0.4, 0.2, 0.3]))
    return model.double()


def batch(draws: int = 1, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images of bits, labels and noise."""
    noise = torch.Generator().manual_seed(seed)
    images = (torch.rand(ROWS, *SHAPE, generator=noise) < 0.5).double()
    labels = torch.randint(CLASSES, (ROWS,), generator=noise)
    return images, labels, torch.randn(draws, ROWS, DIM, generator=noise, dtype=torch.float64)


def terms(
    model: Vae, draws: int = 1, *, beta: float = 1.0, learned_prior: bool = False, **changes: Any
) -> Terms:
    config = TrainConfig(draws=draws, **changes)
    with torch.no_grad():
        return autoencoder_terms(
            model, *batch(draws), config, beta=beta, learned_prior=learned_prior
        )


class ByHand:
    """log p(x|z), log q(z|x), log p(z) and log p(label|z) of each draw, in NumPy, [K, N] each."""

    def __init__(self, model: Vae, draws: int = 1, *, learned_prior: bool = False):
        images, labels, eps = batch(draws)
        with torch.no_grad():
            posterior = model.encode(images, labels)
            mean, log_var = posterior.mean.numpy(), posterior.log_var.numpy()
            z = mean + np.exp(0.5 * log_var) * eps.numpy()
            flat = torch.from_numpy(z.reshape(-1, DIM))
            logits = model.decode(flat, labels.repeat(draws)).numpy()
        p = 1 / (1 + np.exp(-logits.reshape(draws, ROWS, -1)))
        x = images.numpy().reshape(ROWS, -1)
        self.log_likelihood = np.where(x == 1, np.log(p), np.log(1 - p)).sum(-1)
        self.log_posterior = -0.5 * (
            (z - mean) ** 2 / np.exp(log_var) + log_var + np.log(2 * np.pi)
        ).sum(-1)
        self.closed_kl = 0.5 * (mean**2 + np.exp(log_var) - 1 - log_var).sum(-1)
        self.log_prior = -0.5 * (z**2 + np.log(2 * np.pi)).sum(-1)
        self.log_label: NDArray[np.float64] = np.zeros((draws, ROWS))
        if learned_prior:
            joint = self._by_class(model, z)  # log p(z, class), [K, N, classes]
            self.log_prior = np.logaddexp.reduce(joint, axis=2)
            if joint.shape[2] > 1:
                mine = np.take_along_axis(joint, labels.numpy()[None, :, None], axis=2)[..., 0]
                self.log_label = mine - self.log_prior

    def _by_class(self, model: Vae, z: NDArray[np.float64]) -> NDArray[np.float64]:
        prior = model.prior
        assert prior is not None
        flat = torch.from_numpy(z.reshape(-1, DIM))
        with torch.no_grad():
            y, log_det = (tensor.numpy() for tensor in prior.to_base(flat))
            factors, means = prior.factors().numpy(), prior.means.numpy()
            logits, group = prior.logits.numpy(), prior.group.numpy()
            shares = prior.class_weights.numpy()
        joint = []
        for label in range(len(shares)):
            own = group == label
            weights = np.exp(logits[own]) / np.exp(logits[own]).sum()
            density = np.zeros(len(y))
            for weight, factor, mean in zip(weights, factors[own], means[own], strict=True):
                square = (((y - mean) @ factor.T) ** 2).sum(1)
                peak = np.linalg.det(factor) / (2 * np.pi) ** (DIM / 2)
                density += weight * peak * np.exp(-0.5 * square)
            joint.append(np.log(shares[label]) + np.log(density) + log_det)
        return np.stack(joint, axis=1).reshape(*z.shape[:2], -1)


def test_the_elbo_objective_is_reconstruction_plus_closed_form_kl() -> None:
    model = vae()
    got, wanted = terms(model), ByHand(model)
    assert got.reconstruction.item() == pytest.approx(-wanted.log_likelihood.mean())
    assert got.kl.item() == pytest.approx(wanted.closed_kl.mean())
    assert got.loss.item() == pytest.approx((wanted.closed_kl - wanted.log_likelihood).mean())


@pytest.mark.parametrize("prior", [PriorConfig(), GMM, FLOW])
@pytest.mark.parametrize("draws", [1, 3])
def test_a_conditional_objective_is_that_of_each_image_given_its_class(
    prior: PriorConfig, draws: int
) -> None:
    model = vae(conditional=True, prior=prior)
    got = terms(model, draws, learned_prior=prior.learned)
    wanted = ByHand(model, draws, learned_prior=prior.learned)
    kl = wanted.closed_kl
    if prior.learned:
        assert model.prior is not None
        assert model.prior.classes == 0
        kl = wanted.log_posterior - wanted.log_prior
    assert got.reconstruction.item() == pytest.approx(-wanted.log_likelihood.mean())
    assert got.kl.item() == pytest.approx(kl.mean())
    images, labels, _ = batch()
    with torch.no_grad():
        offset = squared_class_offset(model.encode(images, labels).mean, labels, CLASSES).item()
    elbo = kl.mean() - wanted.log_likelihood.mean()
    assert abs(offset) > 1e-3
    assert got.loss.item() == pytest.approx(elbo + 3.0 * offset)
    alone = terms(model, draws, learned_prior=prior.learned, class_offset_weight=0.0)
    assert alone.loss.item() == pytest.approx(elbo)
    half = terms(model, draws, beta=0.5, learned_prior=prior.learned)
    assert half.loss.item() == pytest.approx(elbo - 0.5 * kl.mean() + 1.5 * offset)


def test_noise_is_what_the_encoder_sees_and_not_the_target() -> None:
    model, (images, labels, eps) = vae(), batch()
    seen = images + 0.3
    with torch.no_grad():
        got = autoencoder_terms(
            model, images, labels, eps, TrainConfig(), beta=1.0, learned_prior=False, inputs=seen
        )
        posterior = model.encode(seen)
        nll = model.likelihood.nll(model.decode(posterior.sample(eps[0])), images)
    assert got.kl == posterior.kl().mean()
    assert got.reconstruction == nll.mean()


@pytest.mark.parametrize("posterior", ["gaussian", "delta"])
def test_the_loss_of_a_wasserstein_autoencoder_is_reconstruction_plus_mmd(posterior: str) -> None:
    model, (images, labels, eps) = vae(posterior=posterior), batch(2)
    config = TrainConfig(objective="wae", draws=2, mmd_weight=30.0)
    drawn = torch.randn(eps.shape, dtype=eps.dtype)
    with torch.no_grad():
        got = autoencoder_terms(
            model, images, labels, eps, config, beta=0.5, learned_prior=False, drawn=drawn
        )
        encoded = model.encode(images)
        z = encoded.sample(eps).flatten(0, 1)
        nll = model.likelihood.nll(model.decode(z), images.repeat(2, 1, 1, 1)).mean()
        mmd = squared_mmd(z, drawn.flatten(0, 1))
    assert got.mmd == mmd
    assert got.reconstruction.item() == pytest.approx(nll.item())
    assert got.loss.item() == pytest.approx((nll + 15.0 * mmd).item())
    assert got.kl.item() == (encoded.kl().mean().item() if posterior == "gaussian" else 0.0)
    assert terms(model).mmd == 0


def test_beta_weighs_the_kl_in_the_loss_but_not_in_the_reported_terms() -> None:
    model = vae()
    got, wanted = terms(model, beta=4.0), ByHand(model)
    assert got.loss.item() == pytest.approx((4 * wanted.closed_kl - wanted.log_likelihood).mean())
    plain = terms(model)
    assert (got.reconstruction, got.kl) == (plain.reconstruction, plain.kl)
    assert terms(model, beta=0.0).loss == got.reconstruction


def test_several_draws_of_the_elbo_are_averaged() -> None:
    model = vae()
    got, wanted = terms(model, 6), ByHand(model, 6)
    assert got.reconstruction.item() == pytest.approx(-wanted.log_likelihood.mean())
    assert got.loss.item() == pytest.approx(wanted.closed_kl.mean() - wanted.log_likelihood.mean())


@pytest.mark.parametrize("learned_prior", [False, True])
@pytest.mark.parametrize("draws", [2, 5])
def test_the_iwae_loss_is_minus_the_logarithm_of_the_mean_weight(
    draws: int, learned_prior: bool
) -> None:
    model = vae(prior=FLOW)
    got = terms(model, draws, objective="iwae", learned_prior=learned_prior, label_weight=0.0)
    wanted = ByHand(model, draws, learned_prior=learned_prior)
    weights = np.exp(wanted.log_likelihood + wanted.log_prior - wanted.log_posterior)
    assert got.loss.item() == pytest.approx(-np.log(weights.mean(axis=0)).mean())
    assert got.kl.item() == pytest.approx((wanted.log_posterior - wanted.log_prior).mean())
    assert got.reconstruction.item() == pytest.approx(-wanted.log_likelihood.mean())


def test_the_iwae_loss_of_one_draw_is_the_elbo_of_that_draw() -> None:
    model = vae(prior=FLOW)
    # Under a learned prior both estimate the KL from the draw, and agree to a bit or two.
    one = terms(model, objective="iwae", learned_prior=True)
    other = terms(model, objective="elbo", learned_prior=True)
    assert one.loss.item() == pytest.approx(other.loss.item(), rel=1e-12)
    # Under N(0, I) both have the KL in closed form.
    assert terms(model, objective="iwae").loss == terms(model, objective="elbo").loss


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1), st.integers(2, 9))
def test_the_iwae_bound_is_at_most_the_mean_elbo_of_its_draws(seed: int, draws: int) -> None:
    model = vae(seed)
    many = terms(model, draws, objective="iwae").loss.item()
    wanted = ByHand(model, draws)
    elbo = (wanted.log_posterior - wanted.log_prior - wanted.log_likelihood).mean()
    assert many <= elbo + 1e-9


@pytest.mark.parametrize("prior", [GMM, FLOW, PriorConfig("flow", couplings=2, width=6)])
def test_the_kl_to_a_learned_prior_is_log_q_less_log_p_at_the_draws(prior: PriorConfig) -> None:
    model = vae(prior=prior)
    got = terms(model, 3, learned_prior=True, beta=2.0, label_weight=0.0)
    wanted = ByHand(model, 3, learned_prior=True)
    kl = (wanted.log_posterior - wanted.log_prior).mean()
    assert got.kl.item() == pytest.approx(kl)
    assert got.loss.item() == pytest.approx(2 * kl - wanted.log_likelihood.mean())


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_a_prior_with_classes_adds_a_weighted_label_term(objective: str) -> None:
    model = vae(prior=FLOW)
    options = {"objective": objective, "learned_prior": True}
    without = terms(model, 2, label_weight=0.0, **options)
    got = terms(model, 2, label_weight=0.7, **options)
    wanted = ByHand(model, 2, learned_prior=True)
    assert (wanted.log_label < 0).all()
    assert got.loss.item() == pytest.approx(without.loss.item() - 0.7 * wanted.log_label.mean())
    # Like the KL, it is subject to KL annealing.
    half = terms(model, 2, label_weight=0.7, beta=0.5, **options)
    half_without = terms(model, 2, label_weight=0.0, beta=0.5, **options)
    difference = half.loss.item() - half_without.loss.item()
    assert difference == pytest.approx(-0.35 * wanted.log_label.mean())
    # The reported terms do not depend on the weight.
    assert (got.kl, got.reconstruction) == (without.kl, without.reconstruction)


def test_a_prior_without_classes_has_no_label_term() -> None:
    model = vae(classes=0, prior=FLOW)
    got = terms(model, learned_prior=True, label_weight=5.0)
    assert got.loss == terms(model, learned_prior=True, label_weight=0.0).loss
    z = torch.randn(4, DIM, dtype=torch.float64)
    with torch.no_grad():
        _, label_nll = prior_nlls(model, z, torch.zeros(4, dtype=torch.int64))
    assert label_nll.tolist() == [0.0] * 4


def test_prior_nlls_are_those_worked_out_by_hand() -> None:
    model = vae(prior=GMM)
    images, labels, eps = batch()
    with torch.no_grad():
        z = model.encode(images).sample(eps)[0]
        nll, label_nll = prior_nlls(model, z, labels)
    wanted = ByHand(model, learned_prior=True)
    np.testing.assert_allclose(nll, -wanted.log_prior[0], rtol=1e-9)
    np.testing.assert_allclose(label_nll, -wanted.log_label[0], rtol=1e-9)


@pytest.mark.parametrize("prior", [PriorConfig("none"), GMM])
def test_a_plain_autoencoder_has_its_reconstruction_and_no_kl(prior: PriorConfig) -> None:
    model = vae(posterior="delta", prior=prior)
    got = terms(model, beta=3.0)
    images, _, _ = batch()
    with torch.no_grad():
        p = torch.sigmoid(model.decode(model.encode(images).mean)).numpy()
    x = images.numpy()
    wanted = -np.where(x == 1, np.log(p), np.log(1 - p)).sum(axis=(1, 2, 3)).mean()
    assert got.kl.item() == 0.0
    assert got.loss.item() == got.reconstruction.item() == pytest.approx(wanted)


def test_the_kl_of_validation_is_closed_form_or_at_the_draw() -> None:
    model = vae(prior=FLOW)
    images, _, eps = batch()
    with torch.no_grad():
        posterior = model.encode(images)
        z = posterior.sample(eps)[0]
        standard = kl_at(model, posterior, z, learned_prior=False)
        learned = kl_at(model, posterior, z, learned_prior=True)
    wanted = ByHand(model, learned_prior=True)
    np.testing.assert_allclose(standard, wanted.closed_kl, rtol=1e-9)
    np.testing.assert_allclose(learned, (wanted.log_posterior - wanted.log_prior)[0], rtol=1e-9)
    plain = vae(posterior="delta", prior=PriorConfig("none"))
    assert kl_at(plain, plain.encode(images), z, learned_prior=False).tolist() == [0.0] * ROWS


@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_every_trained_weight_has_a_gradient(objective: str) -> None:
    model = vae(prior=FLOW)
    config = TrainConfig(objective=objective, draws=2)  # type: ignore[arg-type]
    autoencoder_terms(model, *batch(2), config, beta=1.0, learned_prior=True).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name


def gradients(
    draws: int, repeats: int, beta: float = 1.0, *, learned_prior: bool = True, **changes: Any
) -> dict[str, Tensor]:
    """Gradients of a loss by part of the model, each of `repeats` batches of the same images.

    Each image is in a batch 30 times, with noise of its own.
    """
    model = vae(prior=FLOW)
    images, labels, _ = batch()
    images, labels = images.repeat(30, 1, 1, 1), labels.repeat(30)
    found: dict[str, list[Tensor]] = {"encoder": [], "decoder": [], "prior": []}
    config = TrainConfig(draws=draws, **changes)
    noise = torch.Generator().manual_seed(0)
    for _ in range(repeats):
        eps = torch.randn(draws, len(images), DIM, generator=noise, dtype=torch.float64)
        model.zero_grad()
        result = autoencoder_terms(
            model, images, labels, eps, config, beta=beta, learned_prior=learned_prior
        )
        result.loss.backward()
        parts = {"encoder": model.to_mean, "decoder": model.decoder, "prior": model.prior}
        for name, part in parts.items():
            assert part is not None
            each = [
                weight.grad.flatten() for weight in part.parameters() if weight.grad is not None
            ]
            found[name].append(torch.cat(each) if each else torch.zeros(1))
    return {name: torch.stack(each) for name, each in found.items()}


@pytest.mark.parametrize(
    ("objective", "draws", "label_weight", "beta", "learned_prior"),
    [
        ("elbo", 3, 0.0, 1.0, True),
        ("elbo", 1, 0.0, 0.4, False),
        ("iwae", 4, 0.0, 1.0, True),
        ("iwae", 4, 3.0, 0.4, True),
    ],
)
def test_gradients_along_the_path_are_those_of_the_total_derivative_on_average(
    objective: str, draws: int, label_weight: float, beta: float, learned_prior: bool
) -> None:
    path, total = (
        gradients(
            draws,
            50,
            beta,
            learned_prior=learned_prior,
            objective=objective,
            gradient=kind,
            label_weight=label_weight,
        )
        for kind in ("path", "total")
    )
    for name in ("decoder", "prior"):
        torch.testing.assert_close(path[name], total[name])
    difference = path["encoder"] - total["encoder"]
    error = difference.std(dim=0) / math.sqrt(len(difference))
    assert (error > 0).all()
    assert (difference.mean(dim=0).abs() < 4.5 * error).all()
    assert error.max() < 0.05  # so that a bias would be seen


def test_the_gradient_along_the_path_has_no_noise_where_the_posterior_is_exact() -> None:
    """The decoder ignores z here, so the prior is the true posterior."""
    model = vae(prior=PriorConfig("flow", couplings=2, width=6))
    assert model.prior is not None
    with torch.no_grad():
        for network in (model.decoder, model.to_mean, model.to_scale, model.prior):
            assert network is not None
            for parameter in network.parameters():
                parameter.zero_()
    images, labels, eps = batch(3)
    for objective in ("elbo", "iwae"):
        for kind, quiet in (("path", True), ("total", False)):
            config = TrainConfig(objective=objective, draws=3, gradient=kind)  # type: ignore[arg-type]
            model.zero_grad()
            autoencoder_terms(
                model, images, labels, eps, config, beta=1.0, learned_prior=True
            ).loss.backward()
            gradient = model.to_mean.bias.grad
            assert gradient is not None
            assert (gradient.abs().max() < 1e-12) == quiet


@pytest.mark.parametrize("gradient", ["total", "path"])
def test_the_label_term_reaches_encoder_and_prior(gradient: str) -> None:
    model = vae(prior=FLOW)
    assert model.prior is not None
    found = []
    for weight in (0.0, 10.0):
        config = TrainConfig(
            objective="iwae",
            draws=3,
            gradient=gradient,  # type: ignore[arg-type]
            label_weight=weight,
        )
        model.zero_grad()
        autoencoder_terms(model, *batch(3), config, beta=1.0, learned_prior=True).loss.backward()
        found.append([model.to_mean.weight.grad, model.prior.means.grad])
    for without, with_it in zip(*found, strict=True):
        assert without is not None
        assert with_it is not None
        assert (with_it - without).abs().max() > 1e-3


def test_only_the_networks_are_computed_in_bfloat16() -> None:
    model = vae(prior=FLOW).float()
    seen: dict[str, list[bool]] = {"encoder": [], "decoder": [], "prior": []}
    inside = False

    @contextlib.contextmanager
    def precision() -> Iterator[None]:
        nonlocal inside
        inside = True
        with torch.autocast("cpu", dtype=torch.bfloat16):
            yield
        inside = False

    for name, parts in seen.items():
        module = model.prior.flow[0].net if name == "prior" else getattr(model, name)
        module.register_forward_hook(
            lambda _module, _inputs, output, parts=parts: parts.append(
                inside and output.dtype == torch.bfloat16
            )
        )
    images, labels, eps = batch()
    arguments = (model, images.float(), labels, eps.float(), TrainConfig())
    half = autoencoder_terms(*arguments, beta=1.0, learned_prior=True, precision=precision)
    assert seen == {"encoder": [True], "decoder": [True], "prior": [False]}
    whole = autoencoder_terms(*arguments, beta=1.0, learned_prior=True)
    for name in ("loss", "kl", "reconstruction"):
        one, other = getattr(half, name), getattr(whole, name)
        assert one.dtype == torch.float32
        assert one.item() == pytest.approx(other.item(), rel=0.02)
        assert math.isfinite(one.item())
