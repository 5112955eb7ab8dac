"""Latents that stand still while a prior is fitted to them."""

import torch
from torch import Tensor


class Latents:
    """The posteriors that a prior is fitted to.

    Args:
        of: The phase they are for.
        mean: [N, D].
        log_var: [N, D], or None for points.
        labels: int64 [N].
    """

    def __init__(self, of: str, mean: Tensor, log_var: Tensor | None, labels: Tensor):
        self.of = of
        self.mean = mean
        self.labels = labels
        self._std = None if log_var is None else torch.exp(0.5 * log_var)

    def draw(self, rows: Tensor, noise: torch.Generator) -> Tensor:
        """A draw from some of the posteriors, [len(rows), D]."""
        mean = self.mean[rows]
        if self._std is None:
            return mean
        return mean + self._std[rows] * torch.randn(mean.shape, generator=noise).to(mean.device)
