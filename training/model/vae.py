"""The variational autoencoder, its posterior and its likelihood."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from training.model.config import ModelConfig
from training.model.networks import Shape, build_networks
from training.model.numerics import log_sigmoid
from training.model.prior import Prior


@dataclass(frozen=True)
class DiagonalGaussian:
    """Posteriors q(z|x) = N(mean, diag(exp(log_var))) of a batch of images.

    Attributes:
        mean: Means, float [N, D].
        log_var: Natural logarithms of the variances, float [N, D]; None for a plain
            autoencoder, whose posterior is a point.
    """

    mean: Tensor
    log_var: Tensor | None

    def to(self, dtype: torch.dtype) -> "DiagonalGaussian":
        """Converts the tensors to another dtype."""
        return DiagonalGaussian(
            self.mean.to(dtype), None if self.log_var is None else self.log_var.to(dtype)
        )

    def sample(self, eps: Tensor) -> Tensor:
        """Samples by the reparameterization trick (Kingma and Welling 2014, section 2.4).

        Args:
            eps: Standard normal noise, [..., N, D].

        Returns:
            mean + sigma * eps, [..., N, D].
        """
        if self.log_var is None:
            return self.mean.expand_as(eps)
        return self.mean + torch.exp(0.5 * self.log_var) * eps

    def kl(self) -> Tensor:
        """KL(q(z|x) || N(0, I)) of each image in nats, [N].

        In closed form (Kingma and Welling 2014, appendix B).
        """
        assert self.log_var is not None
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var).sum(dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z|x) in nats, [..., N], of latents z [..., N, D]."""
        assert self.log_var is not None
        return gaussian_log_prob(z, self.mean, self.log_var)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log N(z; mean, diag(exp(log_var))) in nats, summed over the last axis."""
    square = (z - mean).square() * torch.exp(-log_var)
    return -0.5 * (square + log_var + _LOG_2PI).sum(dim=-1)


_LOG_2PI = 1.8378770664093453


def bernoulli_nll(logits: Tensor, images: Tensor) -> Tensor:
    """-log p(x|z) of each image in nats, [N], summed over all pixels.

    Computed from the logits, since a float32 sigmoid saturates at 0 and 1.

    Args:
        logits: Output of the decoder, [N, C, H, W].
        images: Targets in [0, 1], [N, C, H, W].
    """
    nll = F.binary_cross_entropy_with_logits(logits, images, reduction="none")
    return nll.flatten(1).sum(dim=1)


class Vae(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014).

    Args:
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        classes: Number of classes of the data, for a prior that is conditional on them.

    Attributes:
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        centre: Mean of each channel of the training images, float [C, 1, 1], which the encoder's
            input is centred on. Without it, Adam moves all weights of a layer that sees bright
            images the same way, and its output by their sum: posteriors explode in a few steps.
        prior: The learned prior; None if p(z) is N(0, I), or a plain autoencoder has no
            prior.

    Raises:
        ConfigError: The config names an unknown activation.
    """

    centre: Tensor

    def __init__(self, config: ModelConfig, image_shape: Shape, classes: int = 0):
        super().__init__()
        self.register_buffer("centre", torch.zeros(image_shape[0], 1, 1))
        self.config = config
        self.image_shape = image_shape
        dim = config.latent_dim
        self.encoder, features, self.decoder = build_networks(config.network, image_shape, dim)
        self.to_mean = nn.Linear(features, dim)
        self.to_scale = nn.Linear(features, dim) if config.posterior == "gaussian" else None
        self.prior = Prior(config.prior, dim, classes) if config.prior.learned else None

    @property
    def labels(self) -> int:
        """Number of classes that the prior can be conditioned on; 0 if it is unconditional."""
        return 0 if self.prior is None else self.prior.classes

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Encodes images [N, C, H, W] in [0, 1] to their posteriors."""
        features = self.encoder(images - self.centre)
        mean = self.to_mean(features)
        if self.to_scale is None:
            return DiagonalGaussian(mean, None)
        scale = self.to_scale(features)
        # sigma = sigmoid(scale), as a log-variance that does not underflow.
        log_var = 2.0 * log_sigmoid(scale) if self.config.scale == "sigmoid" else scale
        return DiagonalGaussian(mean, log_var)

    def decode(self, z: Tensor) -> Tensor:
        """Decodes latents [N, D] to the logits of the pixels, [N, C, H, W]."""
        logits: Tensor = self.decoder(z)
        return logits

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """The weights of encoder and decoder."""
        prior = set(self.prior_parameters())
        return [parameter for parameter in self.parameters() if parameter not in prior]

    def prior_parameters(self) -> list[nn.Parameter]:
        """The weights of the learned prior; empty if there is none."""
        return [] if self.prior is None else list(self.prior.parameters())
