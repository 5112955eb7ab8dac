"""Modules that give networks made by others the inputs and outputs of the contract."""

from typing import Any

import torch
from torch import Tensor, nn

# Bounds of the log-variance, as in diffusers' DiagonalGaussianDistribution.
_LOG_VAR = (-30.0, 20.0)


class UnitEncoder(nn.Module):
    """An encoder of images in [0, 1], from one of images in [0, 1] or in [-1, 1].

    Attributes:
        net: Maps images to a tensor: the means or, of a Gaussian posterior, means and
            log-variances behind each other along axis 1; or to a tuple of both.
        gaussian: Whether the posterior is Gaussian.
        signed: Whether `net` takes images in [-1, 1].
    """

    def __init__(self, net: nn.Module, *, gaussian: bool, signed: bool):
        super().__init__()
        self.net, self.gaussian, self.signed = net, gaussian, signed

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Maps images in [0, 1] to the mean, and the clamped log-variance of a Gaussian one."""
        answer: Any = self.net(image * 2 - 1 if self.signed else image)
        if not self.gaussian:
            return (answer[0] if isinstance(answer, tuple) else answer,)
        mean, log_var = answer if isinstance(answer, tuple) else answer.chunk(2, dim=1)
        return mean, log_var.clamp(*_LOG_VAR)


class UnitDecoder(nn.Module):
    """A decoder to images in [0, 1], from one to images in [0, 1] or in [-1, 1].

    Values may lie a little outside [0, 1]; the server clips them.

    Attributes:
        net: Maps latents to images.
        signed: Whether the images of `net` are in [-1, 1].
    """

    def __init__(self, net: nn.Module, *, signed: bool):
        super().__init__()
        self.net, self.signed = net, signed

    def forward(self, z: Tensor) -> tuple[Tensor]:
        """Maps latents to images."""
        image: Tensor = self.net(z)
        return ((image + 1) / 2 if self.signed else image,)


class BernoulliDecoder(nn.Module):
    """A decoder with a Bernoulli likelihood.

    Attributes:
        net: Maps latents to logits.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Maps latents to images and their logits."""
        logits: Tensor = self.net(z)
        return torch.sigmoid(logits), logits


class Tupled(nn.Module):
    """A module that returns a tuple, of one that may return a tensor.

    Attributes:
        net: Maps a tensor to a tensor or to a tuple of tensors.
    """

    def __init__(self, net: nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Maps a tensor to a tuple."""
        answer: Any = self.net(x)
        return answer if isinstance(answer, tuple) else (answer,)


def cut_sigmoid(net: nn.Module, z: Tensor) -> bool:
    """Replaces the sigmoid that a decoder ends in by the identity, so that it returns logits.

    Args:
        net: Maps latents to images; changed in place.
        z: Example latents.

    Returns:
        Whether it ended in an `nn.Sigmoid`; a reshape may come after it.
    """
    last: list[tuple[nn.Module, Tensor]] = []
    hooks = [
        module.register_forward_hook(lambda module, _inputs, output: last.append((module, output)))
        for module in net.modules()
        if isinstance(module, nn.Sigmoid)
    ]
    try:
        with torch.inference_mode():
            image = net(z)
    finally:
        for hook in hooks:
            hook.remove()
    if not last or not torch.equal(last[-1][1].flatten(), image.flatten()):
        return False
    for parent in net.modules():
        for name, child in parent.named_children():
            if child is last[-1][0]:
                setattr(parent, name, nn.Identity())
    return True
