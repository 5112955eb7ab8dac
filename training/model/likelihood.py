"""Likelihoods p(x|z) of images in torch: what the output of a decoder's network means.

The formulas are those of `common.likelihood`, which measures and scores; tests hold the two
together.
"""

import dataclasses
import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from common.likelihood import LEAST_LOG_SCALE, Likelihood
from training.data.rows import Images
from training.model.config import ModelConfig
from training.model.preset import Preset

Shape = tuple[int, int, int]

#: Peak learning rate of the log-scales, which travel about this far in a step. They have two or
#: three to go, from the deviation of the data to that of what a model leaves unexplained.
SCALE_LEARNING_RATE = 0.03

# Share of the values that are near 0 or 1 in images of bits, and how near, in levels.
_BITS = 0.9
_NEAR = 25
# Images that are counted to choose a likelihood and to begin its scales.
_MOST_IMAGES = 4_096
_CHUNK = 256

_LEVELS = 255.0
_LOG_LEVELS = math.log(_LEVELS)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)


def resolve(preset: Preset, images: Images) -> Preset:
    """Chooses what a preset leaves to the data: `likelihood=auto`, and with it `binarize`.

    Args:
        preset: The preset.
        images: Training images, uint8 [N, C, H, W].
    """
    if preset.model.likelihood != "auto":
        return with_likelihood(preset, preset.model.likelihood)
    counts = level_counts(images).sum(axis=0)
    near = counts[: _NEAR + 1].sum() + counts[-_NEAR - 1 :].sum()
    return with_likelihood(preset, "bernoulli" if near >= _BITS * counts.sum() else "logistic")


def with_likelihood(preset: Preset, likelihood: Likelihood) -> Preset:
    """Gives a preset a likelihood, and with it the pixels that are trained on."""
    model = dataclasses.replace(preset.model, likelihood=likelihood)
    binarize = preset.train.binarize and likelihood == "bernoulli"
    train = dataclasses.replace(preset.train, binarize=binarize)
    return dataclasses.replace(preset, model=model, train=train)


def level_counts(images: Images) -> NDArray[np.int64]:
    """How often each channel has each of the 256 levels, int64 [C, 256].

    Args:
        images: uint8 [N, C, H, W]; of many, `_MOST_IMAGES` are counted, evenly spread.
    """
    count, channels = images.shape[:2]
    rows = np.arange(min(count, _MOST_IMAGES)) * count // min(count, _MOST_IMAGES)
    counts = np.zeros((channels, 256), np.int64)
    for start in range(0, len(rows), _CHUNK):
        chunk = np.asarray(images[rows[start : start + _CHUNK]])
        for channel in range(channels):
            counts[channel] += np.bincount(chunk[:, channel].ravel(), minlength=256)
    return counts


class Bernoulli(nn.Module):
    """Bernoulli pixels, whose logits the network puts out.

    Attributes:
        name: As in the configuration.
        width: Channels of the network's output.
    """

    name: Likelihood = "bernoulli"

    def __init__(self, shape: Shape):
        super().__init__()
        self.width = shape[0]

    def begin(self, counts: NDArray[np.int64]) -> None:
        """Sets what depends on the data, given its `level_counts`: nothing."""

    def parameters_of(self, output: Tensor) -> Tensor:
        """The parameters that `common.likelihood` takes, of the network's output."""
        return output

    def mean(self, output: Tensor) -> Tensor:
        """The mean of p(x|z): images in [0, 1], [N, C, H, W]."""
        return torch.sigmoid(output)

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image in nats, [N], summed over all pixels.

        Computed from the logits, since a float32 sigmoid saturates at 0 and 1.

        Args:
            output: Output of the network, [N, width, H, W].
            images: Targets in [0, 1], [N, C, H, W].
        """
        nll = F.binary_cross_entropy_with_logits(output, images, reduction="none")
        return nll.flatten(1).sum(dim=1)


class Located(nn.Module):
    """Pixels whose locations the network puts out, while their scales are learned constants.

    The network works in units of the data: location = centre + deviation * output.

    Args:
        shape: C, H and W.
        components: Components of each pixel's distribution.
        scales: Number of scales: one, or one for each channel of each component.

    Attributes:
        name: As in the configuration.
        width: Channels of the network's output.
    """

    name: Likelihood
    centre: Tensor
    deviation: Tensor

    def __init__(self, shape: Shape, components: int = 1, scales: int = 1):
        super().__init__()
        self.width = shape[0]
        self.channels = shape[0]
        self.components = components
        self.register_buffer("centre", torch.full((components, shape[0], 1, 1), 0.5))
        self.register_buffer("deviation", torch.full((components, shape[0], 1, 1), 0.5))
        self.log_scale = nn.Parameter(torch.zeros(scales))
        self._share = 1.0 / math.prod(shape)

    def begin(self, counts: NDArray[np.int64]) -> None:
        """Sets centres, deviations and scales to those of the data.

        Args:
            counts: The `level_counts` of the training images.
        """
        centres, deviations = moments(counts)
        self._set(centres[None], deviations[None], self._scales_of(counts))

    def _scales_of(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        raise NotImplementedError

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image in nats, [N].

        Args:
            output: Output of the network, [N, width, H, W].
            images: Targets in [0, 1], [N, C, H, W].
        """
        raise NotImplementedError

    @torch.no_grad()
    def _set(
        self,
        centres: NDArray[np.float64],
        deviations: NDArray[np.float64],
        scales: NDArray[np.float64],
    ) -> None:
        """Sets centres and deviations, [K, C] in [0, 1], and the scales, in the same units."""
        # A constant channel has a deviation of a level.
        least = 1.0 / _LEVELS
        shape = self.centre.shape
        self.centre.copy_(torch.from_numpy(centres).reshape(shape))
        self.deviation.copy_(torch.from_numpy(deviations).clamp(min=least).reshape(shape))
        self.log_scale.copy_(torch.from_numpy(np.log(np.maximum(scales, least))).flatten())

    def bounded_log_scale(self) -> Tensor:
        """The log-scales in units of images in [0, 1], [K, C or 1, 1, 1]."""
        bounded = self.log_scale.clamp(min=LEAST_LOG_SCALE)
        return bounded.reshape(self.components, -1, 1, 1)

    def _trained_log_scale(self) -> Tensor:
        """As `bounded_log_scale`, with the gradient of nats per dimension, below the bound too.

        Of nats it would outweigh the gradient of all weights together in their clipping; and a
        scale whose gradient ends at the bound would never leave it.
        """
        moved = self._share * (self.log_scale - self.log_scale.detach())
        return self.bounded_log_scale().detach() + moved.reshape(self.components, -1, 1, 1)

    def location(self, output: Tensor) -> Tensor:
        """The locations in units of images in [0, 1], [N, C, H, W]."""
        return self.centre[0] + self.deviation[0] * output

    def parameters_of(self, output: Tensor) -> Tensor:
        """The parameters that `common.likelihood` takes, of the network's output."""
        location = self.location(output)
        return torch.cat([location, self.bounded_log_scale()[0].expand_as(location)], dim=1)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of p(x|z): images in [0, 1], [N, C, H, W]."""
        return self.location(output).clamp(0.0, 1.0)


class Gaussian(Located):
    """Gaussian pixels of one learned scale, the optimal sigma of Rybkin et al. 2021."""

    name = "gaussian"

    def _scales_of(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        _, deviations = moments(counts)
        return np.asarray(np.sqrt(np.square(deviations).mean(keepdims=True)))

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image in nats, [N]: as `common.likelihood.gaussian_nll`."""
        scale = self._trained_log_scale()[0]
        off = (images - self.location(output)) * torch.exp(-scale)
        terms = 0.5 * off.square() + (scale + (_HALF_LOG_2PI + _LOG_LEVELS))
        return terms.flatten(1).sum(dim=1)


class Logistic(Located):
    """Pixels of discretized logistic distributions, of a learned scale for each channel."""

    name = "logistic"

    def __init__(self, shape: Shape):
        super().__init__(shape, scales=shape[0])

    def _scales_of(self, counts: NDArray[np.int64]) -> NDArray[np.float64]:
        # The deviation of a logistic distribution is pi / sqrt(3) times its scale.
        return moments(counts)[1] * (math.sqrt(3.0) / math.pi)

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image in nats, [N]: as `common.likelihood.logistic_nll`."""
        levels = torch.round(_LEVELS * images)
        terms = log_levels(levels, self.location(output), self._trained_log_scale()[0])
        return -terms.flatten(1).sum(dim=1)


class LogisticMixture(Located):
    """Pixels of mixtures of discretized logistics, of a scale for each channel and component.

    The network puts out K log-weights and K locations for each channel.

    Args:
        shape: C, H and W.
        components: K, at least 2.
    """

    name = "logistic"

    def __init__(self, shape: Shape, components: int):
        super().__init__(shape, components, scales=components * shape[0])
        self.width = 2 * components * shape[0]

    def begin(self, counts: NDArray[np.int64]) -> None:
        """Spreads the components over the levels of the data."""
        _, deviations = moments(counts)
        shares = (np.arange(self.components) + 0.5) / self.components
        sums = np.cumsum(counts, axis=1) / counts.sum(axis=1, keepdims=True)
        centres = np.stack([np.searchsorted(channel, shares) for channel in sums], axis=1) / _LEVELS
        wide = np.tile(deviations, (self.components, 1))
        self._set(centres, wide, wide / self.components)

    def _parts(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Log-weights and locations, [N, K, C, H, W] each."""
        parts = output.reshape(-1, 2, self.components, self.channels, *output.shape[2:])
        logits, raw = parts.unbind(1)
        return logits, self.centre + self.deviation * raw

    def parameters_of(self, output: Tensor) -> Tensor:
        """The parameters that `common.likelihood` takes, of the network's output."""
        logits, locations = self._parts(output)
        parts = (logits, locations, self.bounded_log_scale().expand_as(locations))
        return torch.cat([part.flatten(1, 2) for part in parts], dim=1)

    def mean(self, output: Tensor) -> Tensor:
        """The mean of p(x|z): images in [0, 1], [N, C, H, W]."""
        logits, locations = self._parts(output)
        terms = logits.softmax(dim=1) * locations.clamp(0.0, 1.0)
        # By additions, whose bits are the same in every batch when exported, unlike those of a sum.
        total = terms[:, 0]
        for component in range(1, self.components):
            total = total + terms[:, component]
        return total.clamp(max=1.0)  # the weights sum to 1 up to rounding

    def nll(self, output: Tensor, images: Tensor) -> Tensor:
        """-log p(x|z) of each image in nats, [N]: as `common.likelihood.mixture_nll`."""
        logits, locations = self._parts(output)
        levels = torch.round(_LEVELS * images)[:, None]
        joint = logits + log_levels(levels, locations, self._trained_log_scale())
        terms = logits.logsumexp(dim=1) - joint.logsumexp(dim=1)
        return terms.flatten(1).sum(dim=1)


def log_levels(levels: Tensor, location: Tensor, log_scale: Tensor) -> Tensor:
    """Log-probability of levels 0 to 255, element by element, as in `common.likelihood`."""
    narrow = torch.exp(-(log_scale + _LOG_LEVELS))
    centre = (levels - _LEVELS * location) * narrow
    zero = torch.zeros((), dtype=location.dtype, device=location.device)
    above = torch.where(levels < _LEVELS, F.softplus(-centre - 0.5 * narrow), zero)
    below = torch.where(levels > 0.0, F.softplus(centre - 0.5 * narrow), zero)
    inner = (levels > 0.0) & (levels < _LEVELS)
    inside = torch.where(inner, torch.log(-torch.expm1(-narrow)), zero)
    return inside - above - below


def build_likelihood(config: ModelConfig, shape: Shape) -> Bernoulli | Located:
    """Builds the likelihood of a model.

    Args:
        config: The model's configuration; `auto` stands for Bernoulli.
        shape: C, H and W.
    """
    if config.likelihood == "gaussian":
        return Gaussian(shape)
    if config.likelihood == "logistic":
        if config.mixture > 1:
            return LogisticMixture(shape, config.mixture)
        return Logistic(shape)
    return Bernoulli(shape)


def moments(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation of each channel in [0, 1], float64 [C] each.

    Args:
        counts: How often each channel has each level, as of `level_counts`.
    """
    values = np.arange(256) / _LEVELS
    shares = counts / counts.sum(axis=1, keepdims=True)
    mean = shares @ values
    return mean, np.sqrt(np.maximum(shares @ np.square(values) - np.square(mean), 0.0))
