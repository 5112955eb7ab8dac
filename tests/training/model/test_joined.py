"""Joined posteriors, against products of densities, and the ELBO of groups, worked out in NumPy."""

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from latentserve._client import posteriors
from training.model.config import Dense, ModelConfig
from training.model.joined import joined
from training.model.objectives import Objective, Terms, joined_terms
from training.model.train_config import TrainConfig
from training.model.vae import DiagonalGaussian, Vae
from training.parallel import Parallel

SHAPE = (1, 3, 2)
DIM, CLASSES = 3, 4
GROUPS, MOST, TARGETS, DRAWS = 4, 3, 2, 5
SHOWN = torch.tensor([[True, False, False], [True, True, True], [True, True, False], [True] * 3])
SIZES = torch.tensor([7.0, 3.0, 2.0, 52.0], dtype=torch.float64)

#: Mean and log-variance, in one dimension, of the posteriors of some images.
moments = st.lists(st.tuples(st.floats(-5, 5), st.floats(-9, 3)), min_size=1, max_size=6)


def log_density(z: NDArray[np.float64], mean: float, log_var: float) -> NDArray[np.float64]:
    square: NDArray[np.float64] = (z - mean) ** 2 * np.exp(-log_var)
    return -0.5 * (square + log_var + np.log(2 * np.pi))


def join(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Joins posteriors of one dimension."""
    mean, log_var = (
        torch.tensor(values, dtype=torch.float64)[:, None] for values in zip(*pairs, strict=True)
    )
    one = joined(DiagonalGaussian(mean, log_var), torch.ones(1, len(pairs), dtype=torch.bool))
    assert one.log_var is not None
    return one.mean.item(), one.log_var.item()


@given(moments)
def test_a_joined_posterior_is_the_product_with_the_prior_counted_once(
    pairs: list[tuple[float, float]],
) -> None:
    mean, log_var = join(pairs)
    prior = max(0.0, *(each for _, each in pairs))
    # Where the logarithms of two densities differ by a constant, the densities are the same.
    z = mean + np.exp(0.5 * log_var) * np.linspace(-3, 3, 7)
    product = sum(log_density(z, *pair) for pair in pairs)
    product -= (len(pairs) - 1) * log_density(z, 0.0, prior)
    difference = product - log_density(z, mean, log_var)
    np.testing.assert_allclose(difference, difference[0], rtol=1e-8, atol=1e-6)
    assert log_var <= min(each for _, each in pairs) + 1e-9


@given(moments)
def test_the_client_joins_as_training_does_and_the_order_does_not_matter(
    pairs: list[tuple[float, float]],
) -> None:
    mean, log_var = (np.array(values)[:, None] for values in zip(*pairs, strict=True))
    for order in (slice(None), slice(None, None, -1)):
        found = posteriors.joined(mean[order], log_var[order])
        np.testing.assert_allclose(np.ravel(found), join(pairs), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("log_var", [-200.0, -1.5, 0.0, 0.7, 150.0])
def test_a_single_posterior_is_returned_to_the_bit(log_var: float) -> None:
    own = DiagonalGaussian(torch.randn(2, DIM), torch.full((2, DIM), log_var))
    one = joined(own, torch.tensor([[True, False], [True, False]]))
    assert own.log_var is not None
    assert one.log_var is not None
    assert torch.equal(one.mean, own.mean)
    assert torch.equal(one.log_var, own.log_var)
    for row in range(2):
        mean, variance = posteriors.joined(
            own.mean[row : row + 1].numpy(), own.log_var[row : row + 1].numpy()
        )
        assert (mean == own.mean[row].numpy()).all()
        assert (variance == own.log_var[row].numpy()).all()


def test_groups_of_several_sizes_are_joined_each_for_itself() -> None:
    rows = int(SHOWN.sum())
    many = DiagonalGaussian(torch.randn(rows, DIM), torch.randn(rows, DIM))
    assert many.log_var is not None
    mean, log_var = many.mean.requires_grad_(), many.log_var.requires_grad_()
    together = joined(DiagonalGaussian(mean, log_var), SHOWN)
    assert together.log_var is not None
    start = 0
    for group, count in enumerate(SHOWN.sum(dim=1).tolist()):
        own = slice(start, start + count)
        alone = joined(DiagonalGaussian(mean[own], log_var[own]), torch.ones(1, count).bool())
        assert alone.log_var is not None
        torch.testing.assert_close(together.mean[group], alone.mean[0])
        torch.testing.assert_close(together.log_var[group], alone.log_var[0])
        # An absent image has no say in the gradient either.
        wanted = torch.autograd.grad(alone.mean.sum() + alone.kl().sum(), (mean, log_var))
        loss = together.mean[group].sum() + together.kl()[group]
        found = torch.autograd.grad(loss, (mean, log_var), retain_graph=True)
        for one, other in zip(found, wanted, strict=True):
            torch.testing.assert_close(one, other)
        start += count


def vae(**changes: Any) -> Vae:
    torch.manual_seed(0)
    config = ModelConfig(Dense(((7, "tanh"),)), DIM, conditional=True, **changes)
    model = Vae(config, SHAPE, CLASSES)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.double()


def batch() -> tuple[Tensor, Tensor, Tensor]:
    noise = torch.Generator().manual_seed(1)
    count = GROUPS * (MOST + TARGETS)
    images = (torch.rand(count, *SHAPE, generator=noise) < 0.5).double()
    labels = torch.randint(CLASSES, (count,), generator=noise)
    eps = torch.randn(DRAWS, GROUPS, DIM, generator=noise, dtype=torch.float64)
    return images, labels, eps


def terms(model: Vae, **options: Any) -> Terms:
    with torch.no_grad():
        return joined_terms(model, *batch(), SHOWN, SIZES, **{"beta": 1.0, **options})


def by_hand(model: Vae) -> tuple[float, float]:
    """Mean of -log p(x|z) over draws and targets, and of KL(q||p) / size over groups."""
    images, labels, eps = batch()
    nats, divergence = [], []
    for group in range(GROUPS):
        first = group * (MOST + TARGETS)
        seen = slice(first, first + int(SHOWN[group].sum()))
        with torch.no_grad():
            each = model.encode(images[seen], labels[seen])
        assert each.log_var is not None
        precision = np.exp(-each.log_var.numpy())
        least = np.minimum(1.0, precision.min(axis=0))
        total = precision.sum(axis=0) - (len(precision) - 1) * least
        mean, variance = (precision * each.mean.numpy()).sum(axis=0) / total, 1 / total
        kl = 0.5 * (mean**2 + variance - 1 - np.log(variance)).sum()
        divergence.append(kl / SIZES[group].item())
        for draw in eps[:, group].numpy():
            z = torch.from_numpy(mean + np.sqrt(variance) * draw)[None]
            for row in range(first + MOST, first + MOST + TARGETS):
                with torch.no_grad():
                    p = torch.sigmoid(model.decode(z, labels[row : row + 1])).numpy()
                nats.append(-np.where(images[row].numpy() == 1, np.log(p), np.log(1 - p)).sum())
    return float(np.mean(nats)), float(np.mean(divergence))


def test_the_loss_is_the_elbo_of_the_group_per_image() -> None:
    model = vae()
    reconstruction, kl = by_hand(model)
    for beta in (1.0, 0.25):
        got = terms(model, beta=beta)
        assert got.reconstruction.item() == pytest.approx(reconstruction)
        assert got.kl.item() == pytest.approx(kl)
        assert got.loss.item() == pytest.approx(reconstruction + beta * kl)
        assert got.mmd.item() == 0


def test_the_encoder_sees_the_inputs_and_the_decoder_the_targets() -> None:
    model = vae()
    images, _, _ = batch()
    plain = terms(model)
    inputs = images.unflatten(0, (GROUPS, -1)).clone()
    inputs[:, MOST:] = 9.0
    inputs[:, :MOST][~SHOWN] = 9.0
    assert terms(model, inputs=inputs.flatten(0, 1)) == plain
    inputs[0, 0] += 0.5
    changed = terms(model, inputs=inputs.flatten(0, 1))
    assert changed.kl != plain.kl


def test_processes_take_whole_groups_and_their_mean_is_the_whole() -> None:
    model = vae()
    config = dataclasses.replace(TrainConfig(), joined=MOST)
    objective = Objective(model, config, learned_prior=False, precision=torch.no_grad)
    images, labels, eps = batch()

    def measure(parallel: Parallel) -> Tensor:
        cut = parallel.slice
        return torch.stack(
            objective(
                cut(images),
                cut(labels),
                cut(eps, 1),
                0.5,
                shown=cut(SHOWN),
                sizes=cut(SIZES),
            )
        )

    whole = measure(Parallel())
    for world in (2, 4):
        parts = [measure(Parallel(rank, world)) for rank in range(world)]
        torch.testing.assert_close(torch.stack(parts).mean(dim=0), whole)


def test_every_weight_of_the_autoencoder_has_a_gradient() -> None:
    model = vae()
    joined_terms(model, *batch(), SHOWN, SIZES, beta=1.0).loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
