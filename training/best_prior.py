"""The best of the priors that a fit goes through: that under which held-out latents are likeliest.

A mixture with full covariances and a flow have more weights than a small data set has latents, and
their fit then fits the training images ever better and all others ever worse.
"""

from typing import Any

import torch
from torch import Tensor

from training.best_weights import BestWeights
from training.model.objectives import prior_nlls
from training.model.vae import Vae


class BestPrior:
    """Keeps the weights of the best prior that it was offered.

    Args:
        label_weight: Weight of the loss given the class, as in the fit itself.
    """

    def __init__(self, label_weight: float):
        self._label_weight = label_weight
        self._best = BestWeights()
        self._latents: tuple[Tensor, Tensor] | None = None

    def judge_by(self, z: Tensor, labels: Tensor) -> None:
        """Sets the held-out latents [M, D], and their classes int64 [M]."""
        self._latents = z, labels

    def forget(self) -> None:
        """Forgets what was offered, for a new fit."""
        self._best.forget()

    @torch.no_grad()
    def offer(self, model: Vae) -> None:
        """Keeps a model's prior if it is the best so far; does nothing without latents."""
        if self._latents is None:
            return
        assert model.prior is not None
        nll, label_nll = prior_nlls(model, *self._latents)
        loss = float((nll + self._label_weight * label_nll).double().mean())
        self._best.offer(model.prior, loss)

    def restore(self, *models: Vae) -> None:
        """Gives models the prior that was kept, if there is one."""
        self._best.restore(*(model.prior for model in models if model.prior is not None))

    def state_dict(self) -> dict[str, Any]:
        """What was kept; the latents are drawn again when a run is resumed."""
        return self._best.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._best.load_state_dict(state)
