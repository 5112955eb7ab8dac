"""Expectation maximisation of a prior's mixture, and its degenerate inputs."""

import copy

import pytest
import torch
from torch import Tensor

from training.model.config import PriorConfig
from training.model.mixture import fit_mixture
from training.model.prior import Prior

# Two classes of two components each, far apart.
WEIGHTS = torch.tensor([[0.3, 0.7], [0.5, 0.5]], dtype=torch.float64)
MEANS = torch.tensor([[[-9.0, 0], [0, 9]], [[9, 0], [0, -9]]], dtype=torch.float64)
FACTORS = torch.tensor(
    [[[[1.0, 0], [0.5, 0.8]], [[0.3, 0], [0, 1.2]]], [[[0.7, 0], [-0.4, 0.5]], [[1, 0], [0, 1]]]],
    dtype=torch.float64,
)  # covariance F F^T


def prior_of(kind: str = "gmm", dim: int = 2, classes: int = 0, components: int = 4) -> Prior:
    torch.manual_seed(0)
    config = PriorConfig(kind, components=components, couplings=2, width=8)  # type: ignore[arg-type]
    return Prior(config, dim, classes)


def known(rows: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Draws from the two classes, a third of them from the first."""
    noise = torch.Generator().manual_seed(seed)
    labels = (torch.arange(rows) % 3 > 0).long()
    second = torch.rand(rows, generator=noise, dtype=torch.float64) >= WEIGHTS[labels, 0]
    eps = torch.randn(rows, 2, 1, generator=noise, dtype=torch.float64)
    z = MEANS[labels, second.long()] + (FACTORS[labels, second.long()] @ eps).squeeze(2)
    return z.float(), labels


def nll(prior: Prior, z: Tensor, labels: Tensor | None = None) -> float:
    with torch.inference_mode():
        return -prior.log_prob(z, labels).mean().item()


def test_a_mixture_of_known_parameters_is_recovered_for_each_class() -> None:
    prior = prior_of(classes=2)
    z, labels = known(6_000)
    fit_mixture(prior, z, labels, seed=1)
    factors = prior.factors().detach()
    covariances = torch.linalg.inv(factors.mT @ factors).double()
    for label in (0, 1):
        weights = prior.log_weights()[label + 1].exp().detach().double()
        for weight, mean, factor in zip(WEIGHTS[label], MEANS[label], FACTORS[label], strict=True):
            found = (prior.means.detach().double() - mean).norm(dim=1).argmin()
            assert prior.group[found] == label
            assert (prior.means[found].detach() - mean).norm() < 0.15
            assert (covariances[found] - factor @ factor.T).abs().max() < 0.15
            assert abs(weights[found] - weight) < 0.03


def test_class_weights_are_the_frequencies_of_the_classes() -> None:
    prior = prior_of(classes=4)
    labels = torch.repeat_interleave(torch.arange(4), torch.tensor([10, 200, 0, 790]))
    fit_mixture(prior, torch.randn(1000, 2), labels, seed=0)
    wanted = torch.tensor([11.0, 201.0, 1.0, 791.0]) / 1004
    torch.testing.assert_close(prior.class_weights, wanted)
    # A class without latents is fitted to all of them, so it can be sampled too.
    assert torch.isfinite(prior.log_prob(torch.randn(5, 2), torch.full((5,), 2))).all()


def test_classes_with_fewer_latents_than_dimensions_are_told_apart() -> None:
    """Three classes of equal covariance, each too small for a covariance of its own."""
    dim, rows = 24, 20
    noise = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat_interleave(rows)
    means = 3.0 * torch.randn(3, dim, generator=noise)
    spread = torch.linspace(0.2, 2.0, dim)
    prior = prior_of(dim=dim, classes=3, components=3)
    z = means[labels] + spread * torch.randn(len(labels), dim, generator=noise)
    fit_mixture(prior, z, labels, seed=0)
    fresh = means[labels] + spread * torch.randn(len(labels), dim, generator=noise)
    found = torch.stack([prior.log_prob(fresh, torch.full_like(labels, k)) for k in range(3)])
    assert torch.equal(found.argmax(dim=0), labels)
    # As good as a fit that knows that the classes have one shape; 24 dimensions of their own.
    exact = torch.distributions.Normal(means[labels], spread).log_prob(fresh).sum(dim=1)
    assert (exact - found.amax(dim=0)).mean() < dim


def test_one_component_is_fitted_to_the_mean_and_covariance_of_all_latents() -> None:
    prior = prior_of("flow", dim=3)
    z = torch.randn(500, 3) @ torch.randn(3, 3) + 5.0
    fit_mixture(prior, z, torch.zeros(500, dtype=torch.int64), seed=0)
    torch.testing.assert_close(prior.means[0].detach(), z.mean(dim=0), rtol=1e-4, atol=1e-4)
    factor = prior.factors()[0].detach()
    covariance = torch.linalg.inv(factor.T @ factor)
    # Exact up to the ridge, a thousandth of the mean variance.
    wanted = torch.cov(z.T, correction=0)
    assert (covariance - wanted).abs().max() < 2e-3 * wanted.diagonal().mean()


def test_a_fit_raises_the_likelihood_and_more_components_raise_it_further() -> None:
    z, labels = known(2_000)
    scores = []
    for components in (1, 2, 4):
        prior = prior_of(components=components)
        before = nll(prior, z)
        fit_mixture(prior, z, labels, seed=0)
        scores.append(nll(prior, z))
        assert scores[-1] < before
    assert scores[0] > scores[1] + 0.1 > scores[2] + 0.2


def test_behind_a_flow_the_mixture_is_fitted_to_mapped_latents_and_the_flow_stays() -> None:
    prior = prior_of("flow-gmm", components=4)
    with torch.no_grad():
        for coupling in prior.flow:
            coupling.net[-1].weight.copy_(0.3 * torch.randn(coupling.net[-1].weight.shape))
    flow = copy.deepcopy(prior.flow.state_dict())
    z, labels = known(3_000)
    before = nll(prior, z)
    fit_mixture(prior, z, labels, seed=0)
    assert nll(prior, z) < before
    for name, weights in prior.flow.state_dict().items():
        assert torch.equal(weights, flow[name])
    with torch.inference_mode():
        y, _ = prior.to_base(z)
    weights = prior.log_weights()[0].exp().detach()
    assert (weights @ prior.means.detach() - y.mean(dim=0)).norm() < 0.3


@pytest.mark.parametrize(
    ("rows", "dim", "components"),
    [(3, 2, 50), (2, 8, 4), (1, 3, 5), (30, 40, 10), (60, 40, 50), (20, 2, 20)],
)
@pytest.mark.parametrize("classes", [0, 3])
def test_components_do_not_collapse_onto_few_latents(
    rows: int, dim: int, components: int, classes: int
) -> None:
    prior = prior_of(dim=dim, classes=classes, components=components)
    z, labels = torch.randn(rows, dim), torch.arange(rows) % 3
    fit_mixture(prior, z, labels, seed=0)
    assert all(torch.isfinite(value).all() for value in prior.state_dict().values())
    assert torch.isfinite(prior.log_prob(torch.randn(9, dim))).all()
    # No narrower than the ridge in any direction; a class may spread less than the whole.
    widths = 1.0 / torch.linalg.svdvals(prior.factors().detach())
    spread = (z - z.mean(dim=0)).square().mean().sqrt().clamp(min=1e-3)
    assert widths.min() > 0.4 * 1e-3**0.5 * spread


@pytest.mark.parametrize("components", [1, 6])
def test_a_mixture_is_fitted_to_latents_that_are_all_equal(components: int) -> None:
    prior = prior_of(dim=3, components=components)
    z = torch.full((50, 3), 2.5)
    fit_mixture(prior, z, torch.zeros(50, dtype=torch.int64), seed=0)
    torch.testing.assert_close(prior.means.detach(), z[:components], rtol=1e-4, atol=1e-4)
    assert torch.isfinite(prior.log_prob(z)).all()


def test_a_mixture_is_fitted_to_latents_with_a_constant_dimension() -> None:
    prior = prior_of(dim=3, components=5)
    z = torch.randn(300, 3)
    z[:, 1] = 0.0
    fit_mixture(prior, z, torch.zeros(300, dtype=torch.int64), seed=0)
    assert torch.isfinite(prior.log_prob(z)).all()
    assert nll(prior, z) < 3.0


def test_a_mixture_fit_depends_on_its_seed() -> None:
    z, labels = known(500)

    def fitted(seed: int) -> dict[str, Tensor]:
        prior = prior_of(classes=2, components=20)
        fit_mixture(prior, z, labels, seed)
        return prior.state_dict()

    one, again, other = fitted(1), fitted(1), fitted(2)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["means"], other["means"])
