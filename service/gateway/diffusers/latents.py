"""Latents as pipelines of diffusers have them, packed and scaled, and as graphs have them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle import LatentScaling, Manifest
from service.api.scaling import Scaling
from service.errors import InvalidArgument, NotForThisModel
from service.gateway.arrays import Array
from service.gateway.diffusers.parameters import DO_SCALING, SCALING_FACTOR, SHIFT_FACTOR
from service.gateway.diffusers.query import Query

Latents = NDArray[np.float32]


@dataclass(frozen=True)
class Factors:
    """How a query says that latents are scaled.

    Attributes:
        scale: `scaling_factor`; None if it is not given.
        shift: `shift_factor`; None if it is not given.
        own: Whether the model's own are meant where none is given.
    """

    scale: float | None
    shift: float | None
    own: bool

    @classmethod
    def of(cls, query: Query) -> "Factors":
        """Reads the parameters `scaling_factor`, `shift_factor` and `do_scaling`.

        Raises:
            InvalidArgument: One of them is invalid, or they contradict each other.
        """
        scale, shift = query.get(SCALING_FACTOR), query.get(SHIFT_FACTOR)
        own = query.get(DO_SCALING)
        if own is False and not (scale is None and shift is None):
            raise InvalidArgument("do_scaling", False, "True, or no factors")
        return cls(scale, shift, bool(own))

    def scaling(self, manifest: Manifest) -> Scaling | None:
        """The scaling of a model's latents; None if they are not scaled.

        Raises:
            NotForThisModel: The model's own factors are meant, and it has none.
        """
        stated = manifest.latent_scaling
        if self.scale is not None or not self.own:
            if self.scale is None and self.shift is None:
                return None
            scale = 1.0 if self.scale is None else self.scale
            stated = LatentScaling(scale=scale, shift=self.shift or 0.0)
        elif stated is None:
            raise NotForThisModel(
                f"do_scaling: got True, but the bundle of {manifest.name} states no latent "
                "scaling; wanted do_scaling=False, or a scaling_factor"
            )
        elif self.shift is not None and stated.scale is not None:
            stated = LatentScaling(scale=stated.scale, shift=self.shift)
        elif self.shift is not None:
            stated = LatentScaling(mean=(self.shift,) * len(stated.std), std=stated.std)
        return Scaling(stated, len(manifest.latent_shape))


def unpacked(latents: Array, height: int | None, width: int | None, manifest: Manifest) -> Array:
    """Unpacks latents: as pipelines of Flux have them, each 2 x 2 of them are one token.

    Args:
        latents: [N, h/2 * w/2, 4c].
        height: H of the images, in pixels.
        width: W of the images.
        manifest: Manifest of the model.

    Returns:
        [N, c, h, w].

    Raises:
        InvalidArgument: The model has no such latents, H or W is absent or odd in units of
            latents, or they do not belong to the shape.
    """
    got = list(latents.shape)
    if len(manifest.latent_shape) == 1:
        raise InvalidArgument("shape", got, f"[N, {manifest.latent_dim}]")
    channels = manifest.latent_shape[0]
    tokens = []
    sides = (("height", height), ("width", width))
    for (name, side), factor in zip(sides, _factors(manifest), strict=True):
        if side is None or side % (2 * factor):
            wanted = f"a multiple of {2 * factor}, the pixels of a packed latent"
            raise InvalidArgument(name, "none" if side is None else side, wanted)
        tokens.append(side // (2 * factor))
    if got[1:] != [tokens[0] * tokens[1], 4 * channels]:
        wanted = f"[N, {tokens[0] * tokens[1]}, {4 * channels}] for height {height}, width {width}"
        raise InvalidArgument("shape", got, wanted)
    parts = latents.reshape(-1, *tokens, channels, 2, 2).transpose(0, 3, 1, 4, 2, 5)
    return parts.reshape(-1, channels, 2 * tokens[0], 2 * tokens[1])


def unscaled(latents: Array, scaling: Scaling, manifest: Manifest) -> Latents:
    """The latents of the graphs: latent / scale + shift.

    Args:
        latents: [N, D] or [N, c, h, w], not validated.
        scaling: How they are scaled.
        manifest: Manifest of the model.

    Returns:
        float32 of the same shape; [N, c, h, w] if they were flattened.

    Raises:
        InvalidArgument: The model has no latents of that shape.
    """
    shape = manifest.latent_shape
    if latents.shape[1:] == (manifest.latent_dim,):
        latents = latents.reshape(-1, *shape)
    if latents.ndim != len(shape) + 1 or latents.shape[1] != shape[0]:
        wanted = f"[N, {shape[0]}, h, w]" if len(shape) > 1 else f"[N, {shape[0]}]"
        raise InvalidArgument("shape", list(latents.shape), wanted)
    with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is refused later
        return scaling.unscaled(latents.astype(np.float32, copy=False))


def _factors(manifest: Manifest) -> tuple[int, int]:
    """Pixels of an image for each value of its latent, along both axes."""
    if manifest.sizes is not None:
        return manifest.sizes.factor, manifest.sizes.factor
    _, height, width = manifest.image_shape
    return height // manifest.latent_shape[1], width // manifest.latent_shape[2]
