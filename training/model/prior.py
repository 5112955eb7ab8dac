"""The learned prior p(z), a mixture of Gaussians mapped by a flow; its density and sampler."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.model.config import PriorConfig
from training.model.numerics import log_sum_exp

# Logarithm of a weight of 0. Its exponential is 0 in float32; -inf could lead to NaN.
_NEVER = -1e4


class Coupling(nn.Module):
    """An affine coupling layer of RealNVP (Dinh, Sohl-Dickstein and Bengio 2017).

    Half of the dimensions stay unchanged and determine the scale and shift of the others.

    Args:
        dim: D, at least 2.
        width: Width of the two hidden layers.
        seed: Seed of the division into halves.
        swap: Whether to transform the first half instead of the second.

    Attributes:
        keep: Indices of the dimensions that stay unchanged, int64.
        move: Indices of the dimensions that are transformed, int64.
        order: Permutation, int64 [D], that brings `keep` followed by `move` into the original
            order.
    """

    keep: Tensor
    move: Tensor
    order: Tensor

    def __init__(self, dim: int, width: int, seed: int, *, swap: bool):
        super().__init__()
        shuffled = torch.randperm(dim, generator=torch.Generator().manual_seed(seed))
        halves = shuffled[: dim // 2].sort().values, shuffled[dim // 2 :].sort().values
        keep, move = halves[::-1] if swap else halves
        self.register_buffer("keep", keep)
        self.register_buffer("move", move)
        self.register_buffer("order", torch.cat([keep, move]).argsort())
        last = nn.Linear(width, 2 * len(move))
        # With these weights the coupling begins as the identity.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(len(keep), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps z [N, D] towards the base distribution: y [N, D] and log|det dy/dz| [N]."""
        kept, moved = z.index_select(1, self.keep), z.index_select(1, self.move)
        log_scale, shift = self._affine(kept)
        y = torch.cat([kept, (moved - shift) * torch.exp(-log_scale)], dim=1)
        return y.index_select(1, self.order), -log_scale.sum(dim=1)

    def from_base(self, y: Tensor) -> Tensor:
        """Maps y [N, D] away from the base distribution to z [N, D], the inverse of `to_base`."""
        kept, moved = y.index_select(1, self.keep), y.index_select(1, self.move)
        log_scale, shift = self._affine(kept)
        z = torch.cat([kept, moved * torch.exp(log_scale) + shift], dim=1)
        return z.index_select(1, self.order)

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(kept).chunk(2, dim=1)
        # The scale is bounded, so that no draw becomes arbitrarily large.
        return 2.0 * torch.tanh(0.5 * raw), shift


class Prior(nn.Module):
    """A flow over a mixture of Gaussians with full covariances.

    z = f(y), where y is drawn from a mixture and f is a stack of couplings. With one
    component it is a plain flow, without couplings a plain mixture. If the data has
    classes, each component belongs to one of them: p(z | label) is the mixture of that
    class's components, and p(z) is the sum of these mixtures weighted by the frequencies
    of the classes.

    Args:
        config: Kind and sizes of a learned prior.
        dim: D, the number of latent dimensions.
        classes: Number of classes of the data; 0 or 1 for none.

    Attributes:
        classes: Number of classes that the prior is conditional on; 0 for none.
        flow: The couplings, from the mixture to the latents.
        group: Class of each component, int64 [K].
        class_weights: Frequency of each class, float [max(1, classes)].
        logits: Unnormalised log-weight of each component within its class, [K].
        means: Mean of each component, [K, D].
        lower: Cholesky factor of each precision matrix below its diagonal, [K, D, D].
        log_diagonal: Logarithm of the diagonal of each Cholesky factor, [K, D]; it keeps the
            diagonal positive.
    """

    group: Tensor
    class_weights: Tensor

    def __init__(self, config: PriorConfig, dim: int, classes: int):
        super().__init__()
        mixture = "gmm" in config.kind
        self.classes = classes if mixture and classes > 1 else 0
        groups = max(1, self.classes)
        per_group = max(1, config.components // groups) if mixture else 1
        couplings = config.couplings if "flow" in config.kind else 0
        self.flow = nn.ModuleList(
            Coupling(dim, config.width, index // 2, swap=index % 2 == 1)
            for index in range(couplings)
        )
        components = groups * per_group
        self.register_buffer("group", torch.arange(groups).repeat_interleave(per_group))
        self.register_buffer("class_weights", torch.full((groups,), 1.0 / groups))
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, dim))
        self.lower = nn.Parameter(torch.zeros(components, dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(components, dim))

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents z [N, D] back through the flow: y [N, D] and log|det dy/dz| [N]."""
        log_det = torch.zeros_like(z[:, 0])
        for coupling in reversed(self.flow):
            assert isinstance(coupling, Coupling)
            z, change = coupling.to_base(z)
            log_det = log_det + change
        return z, log_det

    def from_base(self, y: Tensor) -> Tensor:
        """Maps draws from the mixture through the flow, [N, D] to latents [N, D]."""
        for coupling in self.flow:
            assert isinstance(coupling, Coupling)
            y = coupling.from_base(y)
        return y

    def log_components(self, z: Tensor) -> Tensor:
        """Unweighted log-density of each component at z [N, D]: [N, K]."""
        y, log_det = self.to_base(z)
        return _log_gaussians(y, self._gaussians()) + log_det.unsqueeze(1)

    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Log p(z), or log p(z | label), in nats: [N].

        Args:
            z: Latents, [N, D].
            label: Class of each row, int64 [N], -1 for any; None for any in all rows.
        """
        return self.weigh(self.log_components(z), label)

    def weigh(self, log_components: Tensor, label: Tensor | None = None) -> Tensor:
        """Computes `log_prob`, [N], as the weighted sum over `log_components`, [N, K]."""
        table = self.log_weights()
        weights = table[0] if label is None else table.index_select(0, label + 1)
        return log_sum_exp(log_components + weights)

    def log_weights(self) -> Tensor:
        """The log-weights of the components, [1 + classes, K].

        The first row has those of p(z), row 1 + label those of p(z | label).
        """
        groups = len(self.class_weights)
        members = self.group == torch.arange(groups, device=self.group.device).unsqueeze(1)
        masked = torch.where(members, self.logits, torch.full_like(self.logits, _NEVER))
        by_group = masked.log_softmax(dim=1)
        within = torch.where(members, by_group, torch.full_like(by_group, _NEVER))
        whole = by_group[self.group, torch.arange(len(self.group), device=self.group.device)]
        whole = whole + self.class_weights[self.group].log()
        return torch.cat([whole.unsqueeze(0), within]) if self.classes else whole.unsqueeze(0)

    def factors(self) -> Tensor:
        """The lower Cholesky factor of each component's precision matrix, [K, D, D]."""
        return self.lower.tril(-1) + torch.diag_embed(self.log_diagonal.exp())

    def _gaussians(self) -> "_Gaussians":
        factors = self.factors()
        count, dim, _ = factors.shape
        return _Gaussians(
            # If y is drawn from a component, y P^T - P mean is standard normal.
            factors.reshape(count * dim, dim).T,
            (factors @ self.means.unsqueeze(2)).reshape(count * dim),
            self.log_diagonal.sum(dim=1) - 0.5 * dim * math.log(2.0 * math.pi),
        )


class _Gaussians(NamedTuple):
    """K Gaussians in a form in which their densities take one matrix product.

    Attributes:
        whiten: The transposed Cholesky factors of the precision matrices, [D, K * D].
        offsets: The whitened means, [K * D].
        log_norms: Log-density at each mean, [K].
    """

    whiten: Tensor
    offsets: Tensor
    log_norms: Tensor


def _log_gaussians(y: Tensor, gaussians: _Gaussians) -> Tensor:
    """The log-density of each Gaussian at y [N, D]: [N, K]."""
    count, dim = len(gaussians.log_norms), y.shape[1]
    standardized = (y @ gaussians.whiten - gaussians.offsets).reshape(-1, count, dim)
    square: Tensor = standardized.square().sum(dim=2)
    return gaussians.log_norms - 0.5 * square


class Density(nn.Module):
    """The density of a prior, for export: a snapshot with precomputed constants.

    Args:
        prior: The prior.
    """

    whiten: Tensor
    offsets: Tensor
    log_norms: Tensor
    log_weights: Tensor

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior
        with torch.no_grad():
            for name, value in prior._gaussians()._asdict().items():
                self.register_buffer(name, value.clone(memory_format=torch.contiguous_format))
            self.register_buffer("log_weights", prior.log_weights())

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        """Log p(z | label) in nats, [N], of z [N, D] and label int64 [N], -1 for any."""
        y, log_det = self.prior.to_base(z)
        gaussians = _Gaussians(self.whiten, self.offsets, self.log_norms)
        weights = self.log_weights.index_select(0, _row(label, self.prior))
        return log_sum_exp(_log_gaussians(y, gaussians) + weights) + log_det


def _row(label: Tensor, prior: Prior) -> Tensor:
    """Row of each label in the table of weights; the first row is for label -1."""
    return label + 1 if prior.classes else label * 0


class Sampler(nn.Module):
    """The sampler of a prior, from noise to latents: a snapshot of its weights.

    Args:
        prior: The prior.
    """

    thresholds: Tensor
    scales: Tensor
    means: Tensor

    def __init__(self, prior: Prior):
        super().__init__()
        self.prior = prior
        with torch.no_grad():
            weights = prior.log_weights().double().exp()
            weights = weights / weights.sum(dim=1, keepdim=True)
            # The threshold of the last component with a weight, and of those after it, is
            # above 1, so that rounding never selects a component without a weight.
            last = (weights > 0).to(torch.int64).cumsum(dim=1).argmax(dim=1, keepdim=True)
            cumulative = weights.cumsum(dim=1)
            past = torch.arange(weights.shape[1], device=last.device) >= last
            thresholds = torch.where(past, torch.full_like(cumulative, 2.0), cumulative)
            factors = prior.factors().double()
            identity = torch.eye(factors.shape[-1], dtype=factors.dtype, device=factors.device)
            # Precision P^T P, so covariance S S^T with S = P^-1.
            scales = torch.linalg.solve_triangular(
                factors, identity.expand_as(factors), upper=False
            )
        self.register_buffer("thresholds", thresholds.float())
        self.register_buffer("scales", scales.float())
        self.register_buffer("means", prior.means.detach().clone())

    def forward(self, eps: Tensor, u: Tensor, label: Tensor) -> Tensor:
        """Draws latents.

        Args:
            eps: Standard normal noise, [N, D].
            u: Uniform noise in [0, 1), [N, 1]; selects the component by the inverse of
                the cumulative weights.
            label: Class of each row, int64 [N], -1 for any.

        Returns:
            z [N, D].
        """
        thresholds = self.thresholds.index_select(0, _row(label, self.prior))
        component = (u >= thresholds).to(torch.int64).sum(dim=1)
        scales = self.scales.index_select(0, component)
        y = self.means.index_select(0, component) + (scales * eps.unsqueeze(1)).sum(dim=2)
        return self.prior.from_base(y)
