"""Scaled latents, as diffusion models expect them: conversion from and to those of the graphs."""

import numpy as np
from numpy.typing import NDArray

from bundle import LatentScaling, Manifest
from service.errors import NotForThisModel

Array = NDArray[np.float32]


class Scaling:
    """The scaling of a model's latents, in float32 arithmetic.

    Args:
        scaling: (latent - shift) * scale, or (latent - mean) / std for each channel.
        axes: Number of axes of one latent.
    """

    def __init__(self, scaling: LatentScaling, axes: int):
        def per_channel(*values: float) -> Array:
            return np.asarray(values, np.float32).reshape(-1, *[1] * (axes - 1))

        if scaling.scale is None:
            self._mean, self._std = per_channel(*scaling.mean), per_channel(*scaling.std)
            self._scale: Array | None = None
            log = -np.log(np.asarray(scaling.std))
        else:
            self._mean, self._scale = per_channel(scaling.shift), per_channel(scaling.scale)
            log = np.log(np.asarray([scaling.scale]))
        self._log_var_shift = per_channel(*(2.0 * log))

    def scaled(self, latents: Array) -> Array:
        """Scales latents, or means of posteriors, float32 [N, D] or [N, c, h, w]."""
        centred = latents - self._mean
        return centred / self._std if self._scale is None else centred * self._scale

    def scaled_log_var(self, log_var: Array) -> Array:
        """Log-variances of scaled latents, float32 of the same shape."""
        return log_var + self._log_var_shift

    def unscaled(self, latents: Array) -> Array:
        """The latents of the graphs for scaled ones, float32 of the same shape."""
        spread = latents * self._std if self._scale is None else latents / self._scale
        return spread + self._mean


def scaling_of(scaled: bool, manifest: Manifest) -> Scaling | None:
    """The scaling that a request asks for by its field `scaled`, or None.

    Raises:
        NotForThisModel: The field is set, and the model has no scaling.
    """
    if not scaled:
        return None
    if manifest.latent_scaling is None:
        raise NotForThisModel(f"scaled: the bundle of {manifest.name} states no latent scaling")
    return Scaling(manifest.latent_scaling, len(manifest.latent_shape))
