"""Likelihoods of images under a model, from its decoder's outputs, latents and densities.

Every function that returns nats returns one float64 per row. It sums in float64 over rows that
are contiguous in memory, so that a row's value does not depend on the rest of its batch.
"""

from common.likelihood.latents import (
    ImportanceBound,
    gaussian_log_density,
    percentile,
    standard_kl,
)
from common.likelihood.pixels import (
    LEAST_LOG_SCALE,
    Array,
    Likelihood,
    Nats,
    bernoulli_nll,
    bits_per_dimension,
    gaussian_nll,
    logistic_nll,
    mixture_nll,
    pixel_nll,
)

__all__ = [
    "LEAST_LOG_SCALE",
    "Array",
    "ImportanceBound",
    "Likelihood",
    "Nats",
    "bernoulli_nll",
    "bits_per_dimension",
    "gaussian_log_density",
    "gaussian_nll",
    "logistic_nll",
    "mixture_nll",
    "percentile",
    "pixel_nll",
    "standard_kl",
]
