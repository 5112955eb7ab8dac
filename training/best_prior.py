"""The best of the priors that a fit goes through: that under which held-out latents are likeliest.

A mixture with full covariances and a flow have more weights than a small data set has latents, and
their fit then fits the training images ever better and all others ever worse.
"""

import math
from typing import Any

import torch
from torch import Tensor

from training.model.objectives import prior_nlls
from training.model.vae import Vae


class BestPrior:
    """Keeps the weights of the best prior that it was offered.

    Args:
        label_weight: Weight of the loss given the class, as in the fit itself.
    """

    def __init__(self, label_weight: float):
        self._label_weight = label_weight
        self._loss = math.inf
        self._weights: dict[str, Tensor] = {}
        self._latents: tuple[Tensor, Tensor] | None = None

    def judge_by(self, z: Tensor, labels: Tensor) -> None:
        """Sets the held-out latents [M, D], and their classes int64 [M]."""
        self._latents = z, labels

    def forget(self) -> None:
        """Forgets what was offered, for a new fit."""
        self._loss, self._weights = math.inf, {}

    @torch.no_grad()
    def offer(self, model: Vae) -> None:
        """Keeps a model's prior if it is the best so far; does nothing without latents."""
        if self._latents is None:
            return
        assert model.prior is not None
        nll, label_nll = prior_nlls(model, *self._latents)
        loss = float((nll + self._label_weight * label_nll).double().mean())
        if loss < self._loss:
            self._loss = loss
            self._weights = {key: value.clone() for key, value in model.prior.state_dict().items()}

    def restore(self, *models: Vae) -> None:
        """Gives models the prior that was kept, if there is one."""
        for model in models if self._weights else ():
            assert model.prior is not None
            model.prior.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What was kept; the latents are drawn again when a run is resumed."""
        return {"loss": self._loss, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._loss, self._weights = state["loss"], dict(state["weights"])
