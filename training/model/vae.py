"""The variational autoencoder and its posterior."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.model.config import ModelConfig
from training.model.likelihood import build_likelihood
from training.model.networks import Shape, build_head, build_networks
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


class Vae(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014).

    Args:
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        classes: Number of classes of the data, for a prior that is conditional on them.

    Attributes:
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        centre: Median of each channel of the training images, float [C, 1, 1], which the encoder's
            input is centred on. Without it, Adam moves all weights of a layer that sees bright
            images the same way, and its output by their sum: posteriors explode in a few steps.
        likelihood: p(x|z), given the output of `decode`.
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
        self.likelihood = build_likelihood(config, image_shape)
        self.encoder, features, self.decoder = build_networks(
            config.network, image_shape, dim, self.likelihood.width
        )
        self.to_mean = build_head(config.network, image_shape, features, dim)
        self.to_scale = (
            build_head(config.network, image_shape, features, dim)
            if config.posterior == "gaussian"
            else None
        )
        if self.to_scale is not None and config.initial_scale:
            nn.init.zeros_(self.to_scale.weight)
            assert self.to_scale.bias is not None
            nn.init.constant_(self.to_scale.bias, config.initial_scale)
        self.prior = Prior(config.prior, dim, classes) if config.prior.learned else None

    @property
    def labels(self) -> int:
        """Number of classes that the prior can be conditioned on; 0 if it is unconditional."""
        return 0 if self.prior is None else self.prior.classes

    def begin(self, counts: NDArray[np.int64]) -> None:
        """Sets what begins as a property of the data: the centre, and the likelihood's scales.

        Args:
            counts: The `level_counts` of the training images.
        """
        half = counts.sum(axis=1, keepdims=True) / 2
        medians = (np.cumsum(counts, axis=1) >= half).argmax(axis=1) / 255.0
        self.centre.copy_(torch.from_numpy(medians).reshape(self.centre.shape))
        self.likelihood.begin(counts)

    def encode(self, images: Tensor) -> DiagonalGaussian:
        """Encodes images [N, C, H, W] in [0, 1] to their posteriors."""
        features = self.encoder(images - self.centre)
        mean: Tensor = self.to_mean(features)
        if self.to_scale is None:
            return DiagonalGaussian(mean, None)
        scale = self.to_scale(features)
        # sigma = sigmoid(scale), as a log-variance that does not underflow.
        log_var = 2.0 * log_sigmoid(scale) if self.config.scale == "sigmoid" else scale
        return DiagonalGaussian(mean, log_var)

    def decode(self, z: Tensor) -> Tensor:
        """Decodes latents [N, D] to what `likelihood` takes, [N, width, H, W]."""
        output: Tensor = self.decoder(z)
        return output

    def autoencoder_parameters(self) -> list[nn.Parameter]:
        """The weights of encoder and decoder."""
        others = {*self.prior_parameters(), *self.likelihood_parameters()}
        return [parameter for parameter in self.parameters() if parameter not in others]

    def likelihood_parameters(self) -> list[nn.Parameter]:
        """The learned scales of the likelihood; empty if it has none."""
        return list(self.likelihood.parameters())

    def prior_parameters(self) -> list[nn.Parameter]:
        """The weights of the learned prior; empty if there is none."""
        return [] if self.prior is None else list(self.prior.parameters())
