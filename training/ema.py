"""The exponential moving average of a model's weights."""

import copy

import torch
from torch import Tensor, nn


class MovingAverage(nn.Module):
    """A copy of a model whose weights are the exponential moving average of the model's.

    Its state dict has the form of that of torch's AveragedModel. That class is not used
    because it iterates over the modules of both models at every update, which took as
    long as the update itself.

    Args:
        model: The model that is trained.
        decay: Weight of the old average in an update, below 1; it is lower in the first
            updates.

    Attributes:
        module: The copy, which holds the averaged weights.
        n_averaged: Number of updates so far, int64 [].
    """

    n_averaged: Tensor

    def __init__(self, model: nn.Module, decay: float):
        super().__init__()
        self.module = copy.deepcopy(model)
        self.register_buffer("n_averaged", torch.tensor(0))
        self._decay = decay
        self._weights: list[Tensor] = list(model.parameters())
        self._averages: list[Tensor] = list(self.module.parameters())
        self._buffers_of_model: list[Tensor] = list(model.buffers())
        self._buffers_of_copy: list[Tensor] = list(self.module.buffers())
        self.eval()

    @torch.no_grad()
    def update(self) -> None:
        """Updates the average with the current weights, and copies the buffers.

        After the first update the average equals the weights.
        """
        count = int(self.n_averaged)
        # The decay is low at first, so that the first weights do not stay in the average for long.
        decay = min(self._decay, (1.0 + count) / (10.0 + count)) if count else 0.0
        torch._foreach_lerp_(self._averages, self._weights, 1.0 - decay)
        if self._buffers_of_model:
            torch._foreach_copy_(self._buffers_of_copy, self._buffers_of_model)
        self.n_averaged += 1
