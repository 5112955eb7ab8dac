"""Layers of diffusers in operators that can be exported, and that compute each row by itself."""

from typing import Any

import torch
from torch import Tensor, nn


def make_exportable(module: nn.Module, upsample: type) -> None:
    """Replaces the layers whose code, or whose bits, depend on the size of a batch."""
    layers: Any = module
    if getattr(module, "out_shortcut", False):  # of the encoder of AutoencoderDC
        layers.conv_out = _Last(layers.conv_out, layers.out_shortcut_average_group_size)
        layers.out_shortcut = False
    for name, child in module.named_children():
        if isinstance(child, upsample):
            layer: Any = child
            if layer.use_conv_transpose or layer.norm is not None or not layer.interpolate:
                continue
            setattr(module, name, _Upsample(layer.conv if layer.name == "conv" else layer.Conv2d_0))
        elif type(child).__name__ == "RMSNorm":
            setattr(module, name, _RmsNorm(child))
        elif type(child).__name__ == "DCDownBlock2d":
            setattr(module, name, _Down(child))
        elif type(child).__name__ == "SanaMultiscaleLinearAttention":
            attention: Any = child
            attention.apply_linear_attention = _linear_attention
            make_exportable(child, upsample)
        elif type(child).__name__ == "VectorQuantizer":
            codes: Any = child.embedding
            setattr(module, name, _Quantizer(codes.weight.detach().clone()))
        else:
            make_exportable(child, upsample)


class _Upsample(nn.Module):
    """`Upsample2D` of diffusers without its branches on the number of rows and values."""

    def __init__(self, conv: nn.Module | None):
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor, output_size: None = None) -> Tensor:
        del output_size
        x = nn.functional.interpolate(x, scale_factor=2.0, mode="nearest")
        return x if self.conv is None else self.conv(x)


class _ChannelMeans(nn.Module):
    """Means over groups of channels, [N, C, H, W] to [N, groups, H, W].

    As a convolution, whose bits do not depend on a row's place in memory; those of a mean do.
    """

    weight: Tensor

    def __init__(self, channels: int, groups: int = 1):
        super().__init__()
        self._groups = groups
        size = channels // groups
        self.register_buffer("weight", torch.full((groups, size, 1, 1), 1 / size))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.conv2d(x, self.weight, groups=self._groups)


class _RmsNorm(nn.Module):
    """`RMSNorm` of diffusers over the last axis of [N, H, W, C]."""

    def __init__(self, norm: Any):
        super().__init__()
        self.weight, self.bias, self._eps = norm.weight, norm.bias, norm.eps
        self.mean = _ChannelMeans(norm.dim[0])

    def forward(self, x: Tensor) -> Tensor:
        variance = self.mean(x.square().movedim(-1, 1)).movedim(1, -1)
        x = x * torch.rsqrt(variance + self._eps)
        x = x if self.weight is None else x * self.weight
        return x if self.bias is None else x + self.bias


class _Down(nn.Module):
    """`DCDownBlock2d` of diffusers."""

    def __init__(self, block: Any):
        super().__init__()
        self.conv, self._unshuffles = block.conv, block.downsample
        self.mean = None
        if block.shortcut:
            channels = 4 * block.conv.in_channels
            self.mean = _ChannelMeans(channels, channels // block.group_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if self._unshuffles:
            y = nn.functional.pixel_unshuffle(y, 2)
        return y if self.mean is None else y + self.mean(nn.functional.pixel_unshuffle(x, 2))


def _linear_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The linear attention of AutoencoderDC; the exporter would drop the 1e-15 that it adds."""
    value = nn.functional.pad(value, (0, 0, 0, 1), value=1.0)
    sums = (value @ key.transpose(-1, -2)) @ query
    return sums[:, :, :-1] / sums[:, :, -1:].clamp(min=1e-15)


class _Last(nn.Module):
    """The last convolution of an encoder, and the shortcut beside it that averages channels."""

    def __init__(self, conv: nn.Conv2d, group_size: int):
        super().__init__()
        self.conv = conv
        self.mean = _ChannelMeans(conv.in_channels, conv.in_channels // group_size)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x) + self.mean(x)
        return y


class _Quantizer(nn.Module):
    """`VectorQuantizer` of diffusers in operators that compute each row by itself.

    |z - e|^2 = |z|^2 - 2 z e + |e|^2, and |z|^2 is the same for every code e.
    """

    codes: Tensor
    factors: Tensor
    squares: Tensor

    def __init__(self, codes: Tensor):
        super().__init__()
        self.register_buffer("codes", codes)
        self.register_buffer("factors", -2 * codes.T)
        self.register_buffer("squares", codes.square().sum(1))

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor, None]:
        distances = z.permute(0, 2, 3, 1) @ self.factors + self.squares
        nearest = nn.functional.embedding(distances.argmin(-1), self.codes)
        return nearest.permute(0, 3, 1, 2), z.new_zeros(()), None
