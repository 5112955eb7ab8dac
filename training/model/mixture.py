"""Fit of a prior's mixture by expectation maximisation."""

import torch
from torch import Tensor, nn

from training.model.prior import Prior

_ITERATIONS = 25
# Added to the diagonal of each covariance, as a share of the mean variance, so that a
# component with few rows does not collapse onto them.
_RIDGE = 1e-3
# Lower bound of the mean variance, for latents that are all equal.
_MIN_VARIANCE = 1e-6
_CHUNK = 8_192
# A class with fewer images than this many times D borrows from the covariance that all classes
# have in common, as if D more images had that one.
_ENOUGH = 10


@torch.no_grad()
def fit_mixture(prior: Prior, z: Tensor, labels: Tensor, seed: int, draws: int = 1) -> None:
    """Fits a prior's components, their weights and the class weights to latents.

    The flow does not change: its inverse maps the latents back to the space of the mixture.
    There the components are fitted by expectation maximisation (Dempster, Laird and Rubin
    1977), those of each class to the latents of that class. The covariances of a class with few
    latents are shrunk towards that around the classes' means (Friedman 1989).

    Args:
        prior: The prior to change.
        z: Latents, [N, D].
        labels: Class of each latent, int64 [N]; ignored if the prior has no classes.
        seed: Seed of the initial means.
        draws: Number of latents of each image.
    """
    y = torch.cat([prior.to_base(chunk)[0] for chunk in torch.split(z, _CHUNK)]).double().cpu()
    labels = labels.cpu()
    generator = torch.Generator().manual_seed(seed)
    # The common covariance counts as much as that of D images.
    extra = draws * y.shape[1]
    common = _common_covariance(y, labels, len(prior.class_weights), draws)
    for group in range(len(prior.class_weights)):
        mine = (prior.group == group).nonzero().flatten().cpu()
        rows = y[labels == group] if prior.classes else y
        if not len(rows):
            rows = y  # so that a class without latents can be sampled too
        shrunk = None
        if common is not None and len(rows) < _ENOUGH * extra:
            shrunk = common, extra
        weights, means, covariances = _expectation_maximisation(rows, len(mine), generator, shrunk)
        factors = _precision_factors(covariances)
        prior.logits[mine] = weights.log().to(prior.logits)
        prior.means[mine] = means.to(prior.means)
        prior.lower[mine] = factors.tril(-1).to(prior.lower)
        prior.log_diagonal[mine] = factors.diagonal(dim1=1, dim2=2).log().to(prior.log_diagonal)
    if prior.classes:
        counts = torch.bincount(labels, minlength=prior.classes).double() / draws + 1.0
        prior.class_weights.copy_(counts / counts.sum())


def _common_covariance(y: Tensor, labels: Tensor, classes: int, draws: int) -> Tensor | None:
    """The covariance of latents [N, D] around the means of their classes, [D, D].

    Around the mean of all if there are too few images for that; None if there is one class.
    """
    if classes == 1:
        return None
    size, dim = y.shape
    if size // draws - classes < dim:
        labels = torch.zeros_like(labels)
    members = nn.functional.one_hot(labels, classes).to(y)
    means = members.T @ y / members.sum(dim=0).clamp(min=1.0).unsqueeze(1)
    around = y - means[labels]
    return around.T @ around / size


def _expectation_maximisation(
    rows: Tensor, count: int, generator: torch.Generator, shrunk: tuple[Tensor, int] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Fits K components to rows [N, D]: weights [K], means [K, D], covariances [K, D, D].

    Each covariance is shrunk towards that of `shrunk`, [D, D], which counts as so many rows.
    """
    size, dim = rows.shape

    def shrink(covariance: Tensor, mass: float) -> Tensor:
        if shrunk is None:
            return covariance
        common, extra = shrunk
        return (mass * covariance + extra * common) / (mass + extra)

    centred = rows - rows.mean(dim=0)
    whole = shrink(centred.T @ centred / size, size)
    spread = whole.diagonal().mean().clamp(min=_MIN_VARIANCE)
    ridge = _RIDGE * spread * torch.eye(dim, dtype=rows.dtype)
    weights = torch.full((count,), 1.0 / count, dtype=rows.dtype)
    chosen = torch.randperm(size, generator=generator)[:count]
    # If there are fewer rows than components, some components begin at the same mean.
    means = rows[chosen[torch.arange(count) % len(chosen)]].clone()
    covariances = (whole + ridge).repeat(count, 1, 1)
    if count == 1:
        return weights, rows.mean(dim=0, keepdim=True), covariances
    for _ in range(_ITERATIONS):
        shares = _responsibilities(rows, weights, means, covariances)
        mass = shares.sum(dim=0)
        weights = (mass + 1e-6) / (mass + 1e-6).sum()
        for component in range(count):
            # A component with less mass has too little data and is left unchanged.
            if mass[component] > 1.0:
                share = shares[:, component : component + 1] / mass[component]
                means[component] = (share * rows).sum(dim=0)
                around = rows - means[component]
                own = shrink((share * around).T @ around, float(mass[component]))
                covariances[component] = own + ridge
    return weights, means, covariances


def _responsibilities(rows: Tensor, weights: Tensor, means: Tensor, covariances: Tensor) -> Tensor:
    """Responsibility of each component for each row, [N, K]."""
    factors = _precision_factors(covariances)
    log_norms = factors.diagonal(dim1=1, dim2=2).log().sum(dim=1) + weights.log()
    columns = [
        log_norm - 0.5 * ((rows - mean) @ factor.T).square().sum(dim=1)
        for log_norm, mean, factor in zip(log_norms, means, factors, strict=True)
    ]
    return torch.stack(columns, dim=1).softmax(dim=1)


def _precision_factors(covariances: Tensor) -> Tensor:
    """Lower triangular factors P of the precision matrices, P^T P = covariance^-1: [K, D, D]."""
    lower = torch.linalg.cholesky(covariances)
    identity = torch.eye(lower.shape[-1], dtype=lower.dtype).expand_as(lower)
    factors: Tensor = torch.linalg.solve_triangular(lower, identity, upper=False)
    return factors
