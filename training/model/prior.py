"""The prior p(z): what Sample draws from and what the likelihood is measured under."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from training.model.config import PriorConfig
from training.model.numerics import log_sum_exp

# A weight of nothing, as a logarithm: its exponential is 0 in float32, without NaN.
_NEVER = -1e4


class Coupling(nn.Module):
    """An affine coupling layer of RealNVP (Dinh, Sohl-Dickstein and Bengio 2017).

    One half of the dimensions says how the other half is scaled and moved.

    Args:
        dim: D, at least 2.
        width: Of its two hidden layers.
        seed: Of the division into halves.
        swap: Move the first half, not the second.
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
        # The identity at first.
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.net = nn.Sequential(
            nn.Linear(len(keep), width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), last
        )

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps z [N, D] towards the base: y [N, D] and log|det dy/dz| [N]."""
        kept, moved = z.index_select(1, self.keep), z.index_select(1, self.move)
        log_scale, shift = self._affine(kept)
        y = torch.cat([kept, (moved - shift) * torch.exp(-log_scale)], dim=1)
        return y.index_select(1, self.order), -log_scale.sum(dim=1)

    def from_base(self, y: Tensor) -> Tensor:
        """The inverse of `to_base`, [N, D] to [N, D]."""
        kept, moved = y.index_select(1, self.keep), y.index_select(1, self.move)
        log_scale, shift = self._affine(kept)
        z = torch.cat([kept, moved * torch.exp(log_scale) + shift], dim=1)
        return z.index_select(1, self.order)

    def _affine(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        raw, shift = self.net(kept).chunk(2, dim=1)
        # Bounded, so that no draw is thrown to the moon.
        return 2.0 * torch.tanh(0.5 * raw), shift


class Prior(nn.Module):
    """A mixture of Gaussians with full covariances, seen through a flow.

    z = f(y), where y is drawn from a mixture and f is a stack of couplings; one
    component is the plain flow, no coupling the plain mixture. Where the data has
    classes, each component belongs to one, so that p(z | label) is the mixture of its
    own components, and p(z) is those mixtures weighted by how frequent the classes
    are. Density and sampler are two readings of the same weights.

    Args:
        config: Which kind and how large; a learned one.
        dim: D.
        classes: How many classes the data has; 0 or 1 for none.

    Attributes:
        classes: How many classes can be asked for; 0 where it knows none.
    """

    group: Tensor
    class_weights: Tensor

    def __init__(self, config: PriorConfig, dim: int, classes: int):
        super().__init__()
        mixture = "gmm" in config.kind
        self.classes = classes if mixture and classes > 1 else 0
        groups = max(1, self.classes)
        each = max(1, config.components // groups) if mixture else 1
        couplings = config.couplings if "flow" in config.kind else 0
        self.flow = nn.ModuleList(
            Coupling(dim, config.width, index // 2, swap=index % 2 == 1)
            for index in range(couplings)
        )
        components = groups * each
        self.register_buffer("group", torch.arange(groups).repeat_interleave(each))
        self.register_buffer("class_weights", torch.full((groups,), 1.0 / groups))
        self.logits = nn.Parameter(torch.zeros(components))
        self.means = nn.Parameter(torch.randn(components, dim))
        # The Cholesky factor of each precision matrix: lower triangle and logarithm of
        # the diagonal, which is therefore never 0.
        self.lower = nn.Parameter(torch.zeros(components, dim, dim))
        self.log_diagonal = nn.Parameter(torch.zeros(components, dim))

    def to_base(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents [N, D] back through the flow: y [N, D] and log|det dy/dz| [N]."""
        log_det = torch.zeros_like(z[:, 0])
        for coupling in reversed(self.flow):
            assert isinstance(coupling, Coupling)
            z, change = coupling.to_base(z)
            log_det = log_det + change
        return z, log_det

    def from_base(self, y: Tensor) -> Tensor:
        """Maps points of the mixture through the flow, [N, D] to latents [N, D]."""
        for coupling in self.flow:
            assert isinstance(coupling, Coupling)
            y = coupling.from_base(y)
        return y

    def log_components(self, z: Tensor) -> Tensor:
        """The logarithm of each component's density at z [N, D], without its weight: [N, K]."""
        y, log_det = self.to_base(z)
        return _log_gaussians(y, self._gaussians()) + log_det.unsqueeze(1)

    def log_prob(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Log p(z), or log p(z | label), in nats: [N].

        Args:
            z: [N, D].
            label: int64 [N], the class of each row; -1, or None for all, means any.
        """
        return self.weigh(self.log_components(z), label)

    def weigh(self, log_components: Tensor, label: Tensor | None = None) -> Tensor:
        """Sums what `log_components` returned, as `log_prob` does."""
        table = self.log_weights()
        weights = table[0] if label is None else table.index_select(0, label + 1)
        return log_sum_exp(log_components + weights)

    def log_weights(self) -> Tensor:
        """The logarithm of each component's weight: for any class first, then for each.

        Returns:
            [1 + classes, K].
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
            # One matrix for all: y P^T - P mean is standard normal under its component.
            factors.reshape(count * dim, dim).T,
            (factors @ self.means.unsqueeze(2)).reshape(count * dim),
            self.log_diagonal.sum(dim=1) - 0.5 * dim * math.log(2.0 * math.pi),
        )


class _Gaussians(NamedTuple):
    """Gaussians in the form that makes their densities one matrix product.

    Attributes:
        whiten: [D, K * D].
        offsets: [K * D].
        log_norms: [K], the logarithms of the densities' peaks.
    """

    whiten: Tensor
    offsets: Tensor
    log_norms: Tensor


def _log_gaussians(y: Tensor, gaussians: _Gaussians) -> Tensor:
    """The logarithm of each density at y [N, D]: [N, K]."""
    count, dim = len(gaussians.log_norms), y.shape[1]
    standardized = (y @ gaussians.whiten - gaussians.offsets).reshape(-1, count, dim)
    square: Tensor = standardized.square().sum(dim=2)
    return gaussians.log_norms - 0.5 * square


class Density(nn.Module):
    """The density of a prior as it is exported: a snapshot, what is constant worked out.

    Args:
        prior: What to read.
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
        """Log p(z | label) in nats, [N], for z [N, D] and label int64 [N] (-1 means any)."""
        y, log_det = self.prior.to_base(z)
        gaussians = _Gaussians(self.whiten, self.offsets, self.log_norms)
        weights = self.log_weights.index_select(0, _row(label, self.prior))
        return log_sum_exp(_log_gaussians(y, gaussians) + weights) + log_det


def _row(label: Tensor, prior: Prior) -> Tensor:
    """Where a label stands in the table of weights; -1 is the first row."""
    return label + 1 if prior.classes else label * 0


class Sampler(nn.Module):
    """The other reading of a prior: noise to latents. A snapshot of its weights.

    Args:
        prior: What to draw from.
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
            # Above 1 from the last component that has any weight on, so that rounding
            # never leads past it.
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
            u: Uniform in [0, 1), [N, 1]: which component, by the inverse of the
                cumulative weights.
            label: int64 [N], the class of each row; -1 means any.

        Returns:
            z [N, D].
        """
        thresholds = self.thresholds.index_select(0, _row(label, self.prior))
        component = (u >= thresholds).to(torch.int64).sum(dim=1)
        scales = self.scales.index_select(0, component)
        y = self.means.index_select(0, component) + (scales * eps.unsqueeze(1)).sum(dim=2)
        return self.prior.from_base(y)
