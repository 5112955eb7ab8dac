"""The prior: its density, its sampler, and that both are the same distribution."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import MultivariateNormal

from training.model.config import PriorConfig
from training.model.prior import Density, Prior, Sampler

KINDS = ["gmm", "flow", "flow-gmm"]
JUST_BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))
seeds = st.integers(0, 2**32 - 1)


def bent(
    kind: str = "flow-gmm", dim: int = 2, classes: int = 0, components: int = 6, seed: int = 0
) -> Prior:
    """A prior with random weights: correlated components of different scales, a random flow."""
    torch.manual_seed(seed)
    config = PriorConfig(kind, components=components, couplings=3, width=8)  # type: ignore[arg-type]
    prior = Prior(config, dim, classes)
    with torch.no_grad():
        prior.means.mul_(2.0)
        prior.lower.copy_(0.7 * torch.randn(prior.lower.shape))
        prior.log_diagonal.copy_(0.3 * torch.randn(prior.log_diagonal.shape))
        prior.logits.copy_(0.8 * torch.randn(prior.logits.shape))
        weights = torch.rand(len(prior.class_weights)) + 0.2
        prior.class_weights.copy_(weights / weights.sum())
        for coupling in prior.flow:
            coupling.net[-1].weight.copy_(0.4 * torch.randn(coupling.net[-1].weight.shape))
            coupling.net[-1].bias.copy_(0.2 * torch.randn(coupling.net[-1].bias.shape))
    return prior


def exact_log_probs(prior: Prior, y: Tensor) -> list[Tensor]:
    """Density behind the flow by torch's Gaussians, in float64: of any and of each label."""
    factors = prior.factors().detach().double()
    gaussians = MultivariateNormal(
        prior.means.detach().double(), precision_matrix=factors.mT @ factors
    )
    log_components = gaussians.log_prob(y.double().unsqueeze(1))
    logits, shares = prior.logits.detach().double(), prior.class_weights.double()
    weights = [
        torch.where(prior.group == group, logits, -math.inf).softmax(0)
        for group in range(len(shares))
    ]
    weighted = [share * within for share, within in zip(shares, weights, strict=True)]
    whole = torch.stack(weighted).sum(0)
    return [
        torch.logsumexp(log_components + row.log(), dim=1)
        for row in [whole, *(weights if prior.classes else [])]
    ]


def labels_of(prior: Prior) -> range:
    return range(-1, prior.classes)


def distances(z: Tensor, centres: Tensor) -> Tensor:
    """Distances [N, K], exactly 0 between equal points."""
    return (z.unsqueeze(1) - centres).norm(dim=2)


def full(rows: int, label: int) -> Tensor:
    return torch.full((rows,), label)


def draw(prior: Prior, rows: int, label: int = -1, seed: int = 0) -> Tensor:
    noise = torch.Generator().manual_seed(seed)
    eps = torch.randn(rows, prior.means.shape[1], generator=noise)
    u = torch.rand(rows, 1, generator=noise)
    with torch.inference_mode():
        drawn: Tensor = Sampler(prior)(eps, u, full(rows, label))
    return drawn


def grid(dim: int, reach: float, step: float) -> tuple[Tensor, float]:
    """A grid over the latents, [N, dim], and the volume of its cells."""
    axis = torch.arange(-reach, reach, step, dtype=torch.float64) + step / 2
    return torch.cartesian_prod(*[axis] * dim).reshape(-1, dim), step**dim


@pytest.mark.parametrize(
    ("kind", "dim", "classes"),
    [("gmm", 1, 0), ("gmm", 1, 3), ("gmm", 2, 3), ("flow", 2, 0), ("flow-gmm", 2, 0),
     ("flow-gmm", 2, 3)],
)  # fmt: skip
def test_the_prior_density_integrates_to_one(kind: str, dim: int, classes: int) -> None:
    prior = bent(kind, dim, classes).double()
    points, volume = grid(dim, 25.0, 0.002 if dim == 1 else 0.08)
    with torch.inference_mode():
        components = prior.log_components(points)
        for label in labels_of(prior):
            log_prob = prior.weigh(components, full(len(points), label))
            assert log_prob.exp().sum().item() * volume == pytest.approx(1.0, abs=1e-3)


@settings(max_examples=30)
@given(seeds, st.sampled_from(KINDS), st.integers(2, 7), st.sampled_from([0, 3]))
def test_the_prior_density_is_that_of_torchs_mixture_behind_the_flow(
    seed: int, kind: str, dim: int, classes: int
) -> None:
    prior = bent(kind, dim, classes, seed=seed).double()
    z = 3.0 * torch.randn(20, dim, dtype=torch.float64)
    y, log_det = prior.to_base(z)
    for label, wanted in zip(labels_of(prior), exact_log_probs(prior, y), strict=True):
        got = prior.log_prob(z, full(20, label))
        # Further out, components of other classes matter, whose log-weight is -10,000.
        near = wanted > -5000.0
        torch.testing.assert_close(got[near], (wanted + log_det)[near], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(prior.log_prob(z), prior.log_prob(z, full(20, -1)))


@settings(max_examples=30)
@given(seeds, st.integers(2, 6))
def test_the_flow_is_invertible_and_its_log_det_is_that_of_the_jacobian(
    seed: int, dim: int
) -> None:
    prior = bent("flow", dim, seed=seed).double()
    z = 2.0 * torch.randn(5, dim, dtype=torch.float64)
    y, log_det = prior.to_base(z)
    assert (y - z).abs().max() > 0.01
    torch.testing.assert_close(prior.from_base(y), z, rtol=1e-9, atol=1e-9)
    for row, wanted in zip(z, log_det, strict=True):
        jacobian = torch.autograd.functional.jacobian(
            lambda row: prior.to_base(row.unsqueeze(0))[0].squeeze(0), row
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, wanted)


def test_the_flow_transforms_every_dimension_within_its_bounds() -> None:
    prior = bent("flow", 5)
    y = torch.randn(100, 5)
    moved = (prior.from_base(y) - y).abs().mean(dim=0)
    assert (moved > 0.01).all()
    with torch.no_grad():
        for coupling in prior.flow:
            coupling.net[-1].weight.mul_(1e6)
            # A coupling scales a dimension by e^2 at most.
            _, log_det = coupling.to_base(y)
            assert (log_det.abs() <= 2.0 * len(coupling.move) + 1e-4).all()


def test_a_new_flow_is_the_identity() -> None:
    prior = Prior(PriorConfig("flow-gmm"), 7, 10)
    z = torch.randn(9, 7)
    y, log_det = prior.to_base(z)
    assert torch.equal(y, z)
    assert torch.equal(prior.from_base(z), z)
    assert not log_det.any()


@pytest.mark.parametrize(
    ("kind", "classes", "components", "couplings", "known"),
    [
        ("gmm", 0, 6, 0, 0),
        ("gmm", 1, 6, 0, 0),
        ("gmm", 3, 6, 0, 3),
        ("gmm", 4, 4, 0, 4),  # 6 among 4 classes: one each
        ("gmm", 10, 10, 0, 10),  # fewer than classes: still one each
        ("flow", 0, 1, 3, 0),
        ("flow", 10, 1, 3, 0),
        ("flow-gmm", 0, 6, 3, 0),
        ("flow-gmm", 3, 6, 3, 3),
    ],
)
def test_components_and_couplings_of_each_prior_kind(
    kind: str, classes: int, components: int, couplings: int, known: int
) -> None:
    prior = bent(kind, 3, classes)
    assert len(prior.means) == components
    assert len(prior.flow) == couplings
    assert prior.classes == known
    assert torch.bincount(prior.group).tolist() == [components // max(known, 1)] * max(known, 1)


@pytest.mark.parametrize("kind", ["gmm", "flow-gmm"])
def test_the_density_of_any_label_is_the_frequency_weighted_sum_over_the_labels(kind: str) -> None:
    prior = bent(kind, 2, 3).double()
    z = 3.0 * torch.randn(50, 2, dtype=torch.float64)
    by_label = torch.stack([prior.log_prob(z, full(50, label)) for label in range(3)])
    wanted = torch.logsumexp(by_label + prior.class_weights.log().unsqueeze(1), dim=0)
    torch.testing.assert_close(prior.log_prob(z), wanted)
    torch.testing.assert_close(prior.log_prob(z, full(50, -1)), wanted)
    table = prior.log_weights().exp()
    torch.testing.assert_close(table.sum(dim=1), torch.ones(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("dim", [2, 40])
def test_draws_of_the_sampler_have_the_prior_density(kind: str, classes: int, dim: int) -> None:
    """Within 1e-3 nats of the exported density, of the prior, and of float64."""
    prior = bent(kind, dim, classes)
    with torch.no_grad():
        prior.lower.mul_(1.0 / math.sqrt(dim))
    exact = bent(kind, dim, classes).double()
    exact.load_state_dict(prior.state_dict())
    density = Density(prior)
    for label in labels_of(prior):
        z = draw(prior, 500, label)
        with torch.inference_mode():
            stated = density(z, full(500, label))
            assert (stated - prior.log_prob(z, full(500, label))).abs().max() < 1e-3
            y, log_det = exact.to_base(z.double())
            wanted = exact_log_probs(prior, y)[label + 1] + log_det
            assert (stated.double() - wanted).abs().max() < 1e-3


@pytest.mark.parametrize("kind", ["gmm", "flow-gmm"])
@pytest.mark.parametrize("classes", [0, 3])
def test_components_are_sampled_with_their_weights(kind: str, classes: int) -> None:
    prior = bent(kind, 2, classes, components=9)
    rows = 10_000
    u = (torch.arange(rows).unsqueeze(1) + 0.5) / rows
    centres = prior.from_base(prior.means).detach()
    for label in labels_of(prior):
        z = Sampler(prior)(torch.zeros(rows, 2), u, full(rows, label))
        which = distances(z, centres).argmin(dim=1)
        frequency = torch.bincount(which, minlength=9) / rows
        wanted = prior.log_weights()[label + 1].exp()
        assert (frequency - wanted).abs().max() < 2 / rows
        if label >= 0:
            assert (prior.group[which] == label).all()
            assert set(which.tolist()) == set((prior.group == label).nonzero().flatten().tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_samples_without_noise_are_the_means_of_the_components(kind: str) -> None:
    prior = bent(kind, 3)
    centres = prior.from_base(prior.means).detach()
    z = Sampler(prior)(torch.zeros(200, 3), torch.rand(200, 1), full(200, -1))
    assert distances(z, centres).min(dim=1).values.max() < 1e-6


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("weightless", [False, True])
def test_extreme_values_of_u_select_an_existing_component(classes: int, weightless: bool) -> None:
    prior = bent("gmm", 2, classes, components=6)
    if weightless:  # the first and the last component of all, and of their classes
        with torch.no_grad():
            prior.logits[[0, -1]] = -1e6
    ends = torch.tensor([[0.0], [1e-30], [JUST_BELOW_1]])
    for label in labels_of(prior):
        sampler = Sampler(prior)
        z = sampler(torch.zeros(3, 2), ends, full(3, label))
        nearest = distances(z, prior.means)
        which = nearest.argmin(dim=1)
        assert nearest.min(dim=1).values.max() < 1e-6
        assert (prior.log_weights()[label + 1, which] > -100).all()
        possible = (prior.log_weights()[label + 1] > -100).nonzero().flatten()
        assert which[0] == which[1] == possible[0]
        assert which[2] == possible[-1]


def test_a_prior_without_classes_ignores_the_label() -> None:
    prior = bent("flow", 3)
    z = torch.randn(4, 3)
    labels = torch.tensor([-1, 0, 5, 9])
    assert torch.equal(Density(prior)(z, labels), Density(prior)(z, full(4, -1)))
    draws = [
        Sampler(prior)(z, torch.rand(4, 1, generator=torch.Generator().manual_seed(0)), label)
        for label in (labels, full(4, -1))
    ]
    assert torch.equal(*draws)


def counted(z: Tensor, reach: float, bins: int) -> Tensor:
    counts, _ = torch.histogramdd(z.double(), bins=bins, range=[-reach, reach] * z.shape[1])
    return counts


@pytest.mark.parametrize(
    ("kind", "dim", "classes", "label"),
    [("gmm", 1, 0, -1), ("gmm", 1, 3, 1), ("gmm", 2, 3, -1), ("gmm", 2, 3, 2), ("flow", 2, 0, -1),
     ("flow-gmm", 2, 3, -1), ("flow-gmm", 2, 3, 0)],
)  # fmt: skip
def test_samples_are_distributed_as_the_prior_density(
    kind: str, dim: int, classes: int, label: int
) -> None:
    """A histogram of draws against the density integrated over its bins."""
    prior = bent(kind, dim, classes)
    rows, reach, bins, fine = 100_000, 20.0, 100, 6
    step = 2 * reach / bins / fine
    points, volume = grid(dim, reach, step)
    with torch.inference_mode():
        log_prob = prior.double().log_prob(points, full(len(points), label))
    masses = log_prob.exp() * volume
    edges = masses.reshape([size for _ in range(dim) for size in (bins, fine)])
    wanted = edges.sum(dim=tuple(range(1, 2 * dim, 2))).flatten() * rows
    assert wanted.sum() > 0.99 * rows
    z = draw(prior.float(), rows, label)
    counts = counted(z, reach, bins).flatten()
    enough = wanted > 10
    chi_square = ((counts - wanted)[enough].square() / wanted[enough]).sum().item()
    freedom = enough.sum().item()
    # If they agree, its mean is `freedom` and its deviation sqrt(2 freedom).
    assert abs(chi_square - freedom) < 5 * math.sqrt(2 * freedom)
    # The cross-entropy of the draws is the entropy of the density.
    entropy = -(masses * log_prob).sum().item() / masses.sum().item()
    with torch.inference_mode():
        nll = -prior.log_prob(z, full(rows, label))
    error = nll.std().item() / math.sqrt(rows)
    assert abs(nll.mean().item() - entropy) < 5 * error + 0.01


def test_a_snapshot_does_not_change_with_its_prior() -> None:
    prior = bent("gmm", 2, 3)
    sampler, density = Sampler(prior), Density(prior)
    z, labels = torch.randn(5, 2), full(5, -1)
    before = sampler(z, torch.rand(5, 1).fill_(0.4), labels), density(z, labels)
    with torch.no_grad():
        for parameter in prior.parameters():
            parameter.add_(1.0)
    after = sampler(z, torch.rand(5, 1).fill_(0.4), labels), density(z, labels)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old, new)
