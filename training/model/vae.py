"""The variational autoencoder and its posterior."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from training.errors import ConfigError
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

    def detach(self) -> "DiagonalGaussian":
        """The same posteriors as constants, through which no gradient passes."""
        return DiagonalGaussian(
            self.mean.detach(), None if self.log_var is None else self.log_var.detach()
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

#: The buffers of a `Vae` that say something of the training images, and are not trained.
OF_DATA = ("centre", "class_counts")


class Vae(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014).

    Args:
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        classes: Number of classes of the data, for networks or a prior that are conditional on
            them.

    Attributes:
        config: Networks, latent dimensions, posterior and prior.
        image_shape: C, H and W.
        centre: Median of each channel of the training images, float [C, 1, 1], which the encoder's
            input is centred on. Without it, Adam moves all weights of a layer that sees bright
            images the same way, and its output by their sum: posteriors explode in a few steps.
        likelihood: p(x|z), given the output of `decode`.
        prior: The learned prior; None if p(z) is N(0, I), or a plain autoencoder has no
            prior. That of a conditional model is of all classes: the latents hold what the class
            does not.
        class_counts: Number of training images of each class, int64 [classes]; only a conditional
            model has them.

    Raises:
        ConfigError: The config names an unknown activation, or a conditional model has no
            classes.
    """

    centre: Tensor
    class_counts: Tensor

    def __init__(self, config: ModelConfig, image_shape: Shape, classes: int = 0):
        super().__init__()
        self.register_buffer("centre", torch.zeros(image_shape[0], 1, 1))
        self.config = config
        self.image_shape = image_shape
        dim = config.latent_dim
        self.likelihood = build_likelihood(config, image_shape)
        if config.conditional and classes < 1:
            raise ConfigError("conditional: got true, wanted false: the data has no classes")
        given = classes if config.conditional else 0
        self.encoder, features, self.decoder = build_networks(
            config.network, image_shape, dim, self.likelihood.width, given
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
        of_prior = 0 if config.conditional else classes
        self.prior = Prior(config.prior, dim, of_prior) if config.prior.learned else None
        if given:
            # Integers: rounding the weights to fp16 must not change how often a class is drawn.
            self.register_buffer("class_counts", torch.ones(given, dtype=torch.int64))

    @property
    def labels(self) -> int:
        """Number of classes that the model, or its prior, is conditioned on; 0 for none."""
        if self.config.conditional:
            return len(self.class_counts)
        return 0 if self.prior is None else self.prior.classes

    @property
    def class_weights(self) -> tuple[float, ...]:
        """Share of each class among the training images; empty if the model is unconditional."""
        if not self.config.conditional:
            return ()
        counts = self.class_counts.tolist()
        return tuple(count / sum(counts) for count in counts)

    def begin(self, counts: NDArray[np.int64], labels: NDArray[np.int64]) -> None:
        """Sets what is a property of the data: the centre, the first scales, the class counts.

        Args:
            counts: The `level_counts` of the training images.
            labels: Their classes, int64 [N].
        """
        half = counts.sum(axis=1, keepdims=True) / 2
        medians = (np.cumsum(counts, axis=1) >= half).argmax(axis=1) / 255.0
        self.centre.copy_(torch.from_numpy(medians).reshape(self.centre.shape))
        self.likelihood.begin(counts)
        if self.config.conditional:
            members = np.bincount(labels, minlength=len(self.class_counts))
            self.class_counts.copy_(torch.from_numpy(members))

    def encode(self, images: Tensor, label: Tensor | None = None) -> DiagonalGaussian:
        """Encodes images to their posteriors.

        Args:
            images: [N, C, H, W] in [0, 1].
            label: Class of each image, int64 [N]; only a conditional model looks at it.
        """
        features = self._given(self.encoder, images - self.centre, label)
        mean: Tensor = self.to_mean(features)
        if self.to_scale is None:
            return DiagonalGaussian(mean, None)
        scale = self.to_scale(features)
        # sigma = sigmoid(scale), as a log-variance that does not underflow.
        log_var = 2.0 * log_sigmoid(scale) if self.config.scale == "sigmoid" else scale
        return DiagonalGaussian(mean, log_var)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Decodes latents to what `likelihood` takes, [N, width, H, W].

        Args:
            z: Latents, [N, D].
            label: Class of each row, int64 [N]; only a conditional model looks at it.
        """
        return self._given(self.decoder, z, label)

    def _given(self, network: nn.Module, x: Tensor, label: Tensor | None) -> Tensor:
        output: Tensor = network(x, label) if self.config.conditional else network(x)
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
