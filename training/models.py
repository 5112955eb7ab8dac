"""The autoencoder and the distributions it speaks in."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.errors import ConfigError
from training.presets import ModelConfig

# Only those whose ONNX operators give a row the same bits whatever batch it runs
# in: onnxruntime's Elu, Selu, Mish, Softplus and Log round the tail of an array
# unlike its body (measured on 1.32).
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "leaky_relu": nn.LeakyReLU,
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class DiagonalGaussian:
    """The posterior q(z|x) = N(mean, diag(exp(log_var))).

    Attributes:
        mean: float [N, D].
        log_var: float [N, D], natural logarithm of the variances.
    """

    mean: Tensor
    log_var: Tensor

    def sample(self, eps: Tensor) -> Tensor:
        """Returns mean + sigma * eps, [N, D] (Kingma and Welling 2014, section 2.4).

        Args:
            eps: Standard normal noise, [N, D].
        """
        return self.mean + torch.exp(0.5 * self.log_var) * eps

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each row in nats, [N], summed over the latent dimensions.

        Closed form: Kingma and Welling 2014, appendix B.
        """
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var).sum(dim=1)


def bernoulli_nll(logits: Tensor, images: Tensor) -> Tensor:
    """-log p(x|z) of each row in nats, [N], summed over all pixels.

    From the logits: a float32 sigmoid saturates, its logarithm does not come back.

    Args:
        logits: [N, C, H, W].
        images: [N, C, H, W] in [0, 1].
    """
    nll = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return nll.flatten(1).sum(dim=1)


class Vae(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014), shaped by its config.

    Args:
        config: Layers, latent dimensions and the form of the posterior's scale.
        image_shape: C, H and W.

    Raises:
        ConfigError: The config has no layers, an unknown activation or a size
            below 1.
    """

    def __init__(self, config: ModelConfig, image_shape: tuple[int, int, int]):
        super().__init__()
        if not config.layers or min(width for width, _ in config.layers) < 1:
            raise ConfigError(f"layers: got {config.layers}, wanted one or more of width 1 or more")
        if config.latent_dim < 1:
            raise ConfigError(f"latent_dim: got {config.latent_dim}, wanted 1 or more")
        self.config = config
        self.image_shape = image_shape
        pixels = math.prod(image_shape)
        widths = [width for width, _ in config.layers]
        activations = [activation for _, activation in config.layers]
        self.encoder = _dense([pixels, *widths], activations)
        self.to_mean = nn.Linear(widths[-1], config.latent_dim)
        self.to_scale = nn.Linear(widths[-1], config.latent_dim)
        self.decoder = _dense([config.latent_dim, *reversed(widths)], list(reversed(activations)))
        self.to_logits = nn.Linear(widths[0], pixels)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Maps images [N, C, H, W] in [0, 1] to their posteriors."""
        hidden = self.encoder(images.flatten(1))
        scale = self.to_scale(hidden)
        # sigma = sigmoid(scale), as a log-variance that does not underflow.
        log_var = 2.0 * log_sigmoid(scale) if self.config.scale == "sigmoid" else scale
        return DiagonalGaussian(self.to_mean(hidden), log_var)

    def decode(self, z: Tensor) -> Tensor:
        """Maps latents [N, D] to the logits of the pixels, [N, C, H, W]."""
        logits: Tensor = self.to_logits(self.decoder(z))
        return logits.reshape(-1, *self.image_shape)


def log_sigmoid(x: Tensor) -> Tensor:
    """log(sigmoid(x)), without cancellation, from batch-invariant operators alone.

    min(x, 0) - log(1 + e) with e = exp(-|x|), where log(1 + e) = 2 artanh(e / (2 + e))
    and the argument is at most 1/3, so that seven terms of the series reach float32.
    """
    small = torch.sigmoid(-x.abs())  # e / (1 + e)
    y = small / (2.0 - small)  # e / (2 + e)
    square = y * y
    series = torch.full_like(y, 1.0 / 13.0)
    for divisor in (11.0, 9.0, 7.0, 5.0, 3.0, 1.0):
        series = series * square + 1.0 / divisor
    return x.clamp(max=0.0) - 2.0 * y * series


def _dense(widths: Sequence[int], activations: Sequence[str]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs, name in zip(widths[:-1], widths[1:], activations, strict=True):
        if name not in _ACTIVATIONS:
            raise ConfigError(f"activation: got {name!r}, wanted one of {', '.join(_ACTIVATIONS)}")
        layers += [nn.Linear(inputs, outputs), _ACTIVATIONS[name]()]
    return nn.Sequential(*layers)
