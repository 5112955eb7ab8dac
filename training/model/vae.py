"""The autoencoder and the distributions it speaks in."""

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
    """The posterior q(z|x) = N(mean, diag(exp(log_var))).

    Attributes:
        mean: float [N, D].
        log_var: float [N, D], natural logarithm of the variances; None for the point
            that a plain autoencoder answers.
    """

    mean: Tensor
    log_var: Tensor | None

    def to(self, dtype: torch.dtype) -> "DiagonalGaussian":
        """Returns the same in another precision."""
        return DiagonalGaussian(
            self.mean.to(dtype), None if self.log_var is None else self.log_var.to(dtype)
        )

    def sample(self, eps: Tensor) -> Tensor:
        """Returns mean + sigma * eps (Kingma and Welling 2014, section 2.4).

        Args:
            eps: Standard normal noise, [..., N, D].
        """
        if self.log_var is None:
            return self.mean.expand_as(eps)
        return self.mean + torch.exp(0.5 * self.log_var) * eps

    def kl(self) -> Tensor:
        """KL(q || N(0, I)) of each row in nats, [N], summed over the latent dimensions.

        Closed form: Kingma and Welling 2014, appendix B.
        """
        assert self.log_var is not None
        return 0.5 * (self.mean.square() + self.log_var.exp() - 1.0 - self.log_var).sum(dim=1)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log q(z|x) of each row in nats, [..., N], for z [..., N, D]."""
        assert self.log_var is not None
        return gaussian_log_prob(z, self.mean, self.log_var)


def gaussian_log_prob(z: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log N(z; mean, diag(exp(log_var))) in nats, summed over the last axis."""
    square = (z - mean).square() * torch.exp(-log_var)
    return -0.5 * (square + log_var + _LOG_2PI).sum(dim=-1)


_LOG_2PI = 1.8378770664093453


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
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        classes: How many classes the data has, for a prior that knows them.

    Attributes:
        prior: The learned prior, or None where there is nothing to learn.

    Raises:
        ConfigError: The config names an unknown activation.
    """

    def __init__(self, config: ModelConfig, image_shape: Shape, classes: int = 0):
        super().__init__()
        self.config = config
        self.image_shape = image_shape
        dim = config.latent_dim
        self.encoder, features, self.decoder = build_networks(config.network, image_shape, dim)
        self.to_mean = nn.Linear(features, dim)
        self.to_scale = nn.Linear(features, dim) if config.posterior == "gaussian" else None
        self.prior = Prior(config.prior, dim, classes) if config.prior.learned else None

    @property
    def labels(self) -> int:
        """How many classes the prior can be asked for; 0 for none."""
        return 0 if self.prior is None else self.prior.classes

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Maps images [N, C, H, W] in [0, 1] to their posteriors."""
        features = self.encoder(images)
        mean = self.to_mean(features)
        if self.to_scale is None:
            return DiagonalGaussian(mean, None)
        scale = self.to_scale(features)
        # sigma = sigmoid(scale), as a log-variance that does not underflow.
        log_var = 2.0 * log_sigmoid(scale) if self.config.scale == "sigmoid" else scale
        return DiagonalGaussian(mean, log_var)

    def decode(self, z: Tensor) -> Tensor:
        """Maps latents [N, D] to the logits of the pixels, [N, C, H, W]."""
        logits: Tensor = self.decoder(z)
        return logits

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """The weights of encoder and decoder."""
        prior = set() if self.prior is None else set(self.prior.parameters())
        return [each for each in self.parameters() if each not in prior]

    def prior_parameters(self) -> list[nn.Parameter]:
        """The weights of the learned prior; none where there is none."""
        return [] if self.prior is None else list(self.prior.parameters())
