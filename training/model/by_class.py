"""The layers of a conditional model that depend on the class."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Deviation of the shifts of a class at first: classes differ from the first step on.
_FIRST_SHIFT = 0.1


class ByClass(nn.Module):
    """Scales and shifts features by the class of their row (FiLM, Perez et al. 2018).

    By a table and elementwise arithmetic, whose bits for a row are the same in every batch. The
    scale is relative to 1 and begins there.

    Args:
        classes: Number of classes.
        width: Number of features, or of channels.
    """

    def __init__(self, classes: int, width: int):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(classes, width))
        self.shift = nn.Parameter(_FIRST_SHIFT * torch.randn(classes, width))

    def forward(self, x: Tensor, label: Tensor) -> Tensor:
        """Maps features [N, width] or [N, width, H, W] of rows of the classes int64 [N]."""
        # Under autocast the features are bfloat16, and are to stay so in the layers that follow.
        scale, shift = (F.embedding(label, table).to(x.dtype) for table in (self.scale, self.shift))
        if x.ndim == 4:
            scale, shift = scale[:, :, None, None], shift[:, :, None, None]
        return x * (1.0 + scale) + shift


class Layers(nn.Sequential):
    """Layers one after the other, of which those that depend on the class are given it."""

    def forward(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Maps features, given the class of each row, int64 [N], if a layer depends on it."""
        for layer in self:
            x = layer(x, label) if isinstance(layer, ByClass) else layer(x)
        return x


def by_class(classes: int, widths: Sequence[int]) -> nn.ModuleList:
    """What depends on the class for features of several widths; empty without classes."""
    return nn.ModuleList(ByClass(classes, width) for width in widths if classes)
