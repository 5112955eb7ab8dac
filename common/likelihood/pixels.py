"""Likelihoods p(x|z) of images, from the output of a decoder.

Bernoulli pixels have logits, [N, C, H, W]. The others have P groups of parameters for each
channel, [N, P * C, H, W]: the first group is channels 0 to C, the second C to 2C, and so on.

- `gaussian`, P = 2: means and logarithms of the standard deviations.
- `logistic`, P = 2: locations and log-scales of logistic distributions, discretized to the 256
  levels of a byte. With K > 1 components, P = 3 * K: K groups of unnormalised log-weights, K of
  locations, K of log-scales.

Means, locations and scales are in units of images in [0, 1]. Probabilities are per level, and a
density is that of 255 * x, so that the nats of all of them compare: an 8-bit image has them all.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
Nats = NDArray[np.float64]
Likelihood = Literal["bernoulli", "gaussian", "logistic"]

#: The smallest log-scale that a model is trained to: a quarter of a level. Below, an 8-bit image
#: says nothing more, and the density of constant images would grow without end.
LEAST_LOG_SCALE = -7.0

_LEVELS = 255.0
_LOG_LEVELS = math.log(_LEVELS)
_HALF_LOG_2PI = 0.5 * math.log(2.0 * math.pi)
# Rows that are computed at a time: in float64 they take eight times the memory of their pixels.
_BLOCK_ROWS = 256
# Values of images that are computed at a time where there are many arrays of them.
_BLOCK_VALUES = 1 << 16


def pixel_nll(likelihood: Likelihood, parameters: Array, images: Array) -> Nats:
    """-log p(x|z), summed over pixels, [N].

    Args:
        likelihood: The likelihood.
        parameters: Output of the decoder, float32 [N, P * C, H, W].
        images: Targets x, float32 [N, C, H, W] in [0, 1].
    """
    if likelihood == "bernoulli":
        return bernoulli_nll(parameters, images)
    channels = images.shape[1]
    if parameters.shape[1] > 2 * channels:
        return mixture_nll(parameters, images)
    nll = gaussian_nll if likelihood == "gaussian" else logistic_nll
    return nll(parameters[:, :channels], parameters[:, channels:], images)


def bernoulli_nll(logits: Array, images: Array) -> Nats:
    """-log p(x|z) of Bernoulli pixels, summed over them, [N].

    Computed as softplus(l) - x * l, which does not saturate: for |l| >= 18 a float32
    sigmoid can be exactly 0 or 1, and its logarithm infinite.

    Args:
        logits: Output l of the decoder, float32 [N, C, H, W].
        images: Targets x, float32 [N, C, H, W] in [0, 1].
    """
    result = np.empty(len(logits))
    for start in range(0, len(logits), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        wide = logits[block].reshape(len(logits[block]), -1).astype(np.float64)
        terms = np.logaddexp(0.0, wide) - images[block].reshape(len(wide), -1) * wide
        result[block] = terms.sum(axis=1)
    return result


def gaussian_nll(mean: Array, log_scale: Array, images: Array) -> Nats:
    """-log of the density of 255 * x under N(255 * mean, (255 * exp(log_scale))^2), [N].

    Args:
        mean: Means in units of images in [0, 1], float32 [N, C, H, W].
        log_scale: Logarithms of the standard deviations in the same units.
        images: Targets x, float32 [N, C, H, W] in [0, 1].
    """
    result = np.empty(len(images))
    for block in _blocks(images):
        scale = log_scale[block].astype(np.float64)
        off = (images[block] - mean[block].astype(np.float64)) * np.exp(-scale)
        result[block] = _summed(0.5 * off * off + scale) + (_HALF_LOG_2PI + _LOG_LEVELS) * (
            images[0].size
        )
    return result


def logistic_nll(location: Array, log_scale: Array, images: Array) -> Nats:
    """-log of the probability of the images' levels under discretized logistics, [N].

    A level has the probability that a logistic distribution gives to the interval around it,
    of one level's width; the intervals of 0 and 255 are open to the outside (Kingma et al. 2016,
    appendix; Salimans et al. 2017), so that the 256 probabilities sum to 1.

    Args:
        location: Locations in units of images in [0, 1], float32 [N, C, H, W].
        log_scale: Logarithms of the scales in the same units.
        images: Targets x, float32 [N, C, H, W] in [0, 1]; rounded to the nearest level.
    """
    result = np.empty(len(images))
    for block in _blocks(images):
        result[block] = -_summed(
            _log_levels(_levels(images[block]), location[block], log_scale[block])
        )
    return result


def mixture_nll(parameters: Array, images: Array) -> Nats:
    """-log of the probability of the images' levels under mixtures of discretized logistics, [N].

    Args:
        parameters: Log-weights, locations and log-scales of K components, float32
            [N, 3 * K * C, H, W].
        images: Targets x, float32 [N, C, H, W] in [0, 1]; rounded to the nearest level.
    """
    result = np.empty(len(images))
    for block in _blocks(images, parameters.shape[1] // images.shape[1] // 3):
        logits, locations, log_scales = _components(parameters[block], images.shape[1])
        wide = logits.astype(np.float64)
        levels = _levels(images[block])[:, None]
        joint = wide + _log_levels(levels, locations, log_scales)
        result[block] = _summed(_log_sum_exp(wide) - _log_sum_exp(joint))
    return result


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Nats of an image as bits per dimension.

    Args:
        nats: Negative log-likelihood of an image, or a bound on it.
        dimensions: C * H * W of the image.
    """
    return nats / (dimensions * math.log(2.0))


def _log_levels(levels: NDArray[np.float64], location: Array, log_scale: Array) -> Nats:
    """Log-probability of each level, element by element.

    With u and v the upper and the lower edge of a level's interval in units of the scale, and d
    their distance, sigmoid(u) - sigmoid(v) = sigmoid(u) * sigmoid(-v) * (1 - exp(-d)), which
    neither cancels nor saturates.
    """
    wide = log_scale.astype(np.float64) + _LOG_LEVELS
    narrow = np.exp(-wide)
    centre = (levels - _LEVELS * location.astype(np.float64)) * narrow
    above = np.where(levels < _LEVELS, np.logaddexp(0.0, -centre - 0.5 * narrow), 0.0)
    below = np.where(levels > 0.0, np.logaddexp(0.0, centre - 0.5 * narrow), 0.0)
    # The logarithm of 1 - exp(-d); of the open intervals of 0 and 255 there is no such factor.
    inside = np.where((levels > 0.0) & (levels < _LEVELS), np.log(-np.expm1(-narrow)), 0.0)
    return np.asarray(inside - above - below)


def _log_sum_exp(values: Nats) -> Nats:
    """The logarithm of the sum of exponentials along axis 1."""
    peak = values.max(axis=1)
    return np.asarray(peak + np.log(np.exp(values - peak[:, None]).sum(axis=1)))


def _levels(images: Array) -> NDArray[np.float64]:
    """The level of each value, 0 to 255."""
    return np.asarray(np.rint(_LEVELS * images.astype(np.float64)))


def _components(parameters: Array, channels: int) -> tuple[Array, Array, Array]:
    """Log-weights, locations and log-scales of a mixture, [N, K, C, H, W] each."""
    shape = (len(parameters), 3, -1, channels, *parameters.shape[2:])
    parts = parameters.reshape(shape)
    return parts[:, 0], parts[:, 1], parts[:, 2]


def _blocks(images: Array, components: int = 1) -> list[slice]:
    rows = max(1, _BLOCK_VALUES // (components * math.prod(images.shape[1:])))
    return [slice(start, start + rows) for start in range(0, len(images), rows)]


def _summed(terms: Nats) -> Nats:
    """Sums of contiguous rows, [N]."""
    return np.asarray(np.ascontiguousarray(terms).reshape(len(terms), -1).sum(axis=1))
