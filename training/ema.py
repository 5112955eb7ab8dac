"""The moving average of a model's weights, which is what is measured and exported."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of a model whose weights follow those of the model.

    Its state is that of torch's AveragedModel. That one walks through the modules of
    both models at every update, which took as long as the update itself.

    Args:
        model: What to follow.
        decay: How much of the average an update keeps, once there have been many.

    Attributes:
        module: The copy.
        n_averaged: Updates done, int64 [].
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", torch.tensor(0))
        self._decay = decay
        self._followed: list[Tensor] = list(model.parameters())
        self._following: list[Tensor] = list(self.module.parameters())
        self._kept: list[Tensor] = list(model.buffers())
        self._copies: list[Tensor] = list(self.module.buffers())
        self.eval()

    @torch.no_grad()
    def update(self) -> None:
        """Moves the average towards the weights as they are now; the first time, onto them."""
        count = int(self.n_averaged)
        # A short memory at first, or the average would hold on to the initial weights.
        memory = min(self._decay, (1.0 + count) / (10.0 + count)) if count else 0.0
        torch._foreach_lerp_(self._following, self._followed, 1.0 - memory)
        if self._kept:
            torch._foreach_copy_(self._copies, self._kept)
        self.n_averaged += 1
