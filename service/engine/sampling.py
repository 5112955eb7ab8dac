"""Sampling: seeds and row indices of noise, and the reparameterisation of a posterior."""

import math
import secrets
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from common.classes import draw_classes
from common.noise import standard_normal, uniform
from service.engine.request import Arrays

Array = NDArray[np.float32]

#: The label that means any class.
ANY_LABEL = -1


@dataclass(frozen=True)
class Draw:
    """The noise of a request: row i is row `offset` + i in the sequence of the seed.

    Attributes:
        seed: Key of the generator, 0 to 2^64 - 1.
        offset: Index of the first row, 0 to 2^64 - 1.
    """

    seed: int
    offset: int = 0


@dataclass(frozen=True)
class Choice:
    """How samples are drawn from a prior. Its methods return inputs of graphs for some rows.

    Attributes:
        manifest: Manifest of the model.
        draw: Seed and offset of the noise.
        shape: Shape of one latent.
        label: The class to sample; -1 for any.
        temperature: Factor on the standard deviation of the noise.
        truncation: Bound on the absolute value of the noise, before `temperature` is applied; None
            for no bound.
    """

    manifest: Manifest
    draw: Draw
    shape: tuple[int, ...]
    label: int
    temperature: float
    truncation: float | None

    def latents(self, start: int, stop: int) -> Arrays:
        """Inputs of the decoder where the prior is the standard normal."""
        z = self._noise(start, stop)
        return self._labelled(z, start, stop) if self.manifest.conditional else {"z": z}

    def given(self, z: Array, start: int, stop: int) -> Arrays:
        """Inputs of a conditional decoder for latents of a learned prior, those of all rows."""
        return self._labelled(z[start:stop], start, stop)

    def noise(self, start: int, stop: int) -> Arrays:
        """Inputs of the graph `prior`, whose label is -1 where the model itself is conditional."""
        label, u = self.label, uniform(self.draw.seed, self.draw.offset + start, stop - start)
        if self.manifest.conditional:
            if label == ANY_LABEL:
                _, u = draw_classes(self.manifest.class_weights, u)
            label = ANY_LABEL
        labels = np.full(stop - start, label, np.int64)
        return {"eps": self._noise(start, stop), "u": u, "label": labels}

    def _labelled(self, z: Array, start: int, stop: int) -> Arrays:
        """Adds the classes of rows to their latents."""
        if self.label == ANY_LABEL:
            u = uniform(self.draw.seed, self.draw.offset + start, stop - start)
            labels, _ = draw_classes(self.manifest.class_weights, u)
        else:
            labels = np.full(stop - start, self.label, np.int64)
        return {"z": z, "label": labels}

    def _noise(self, start: int, stop: int) -> Array:
        eps = standard_normal(
            self.draw.seed,
            self.draw.offset + start,
            stop - start,
            math.prod(self.shape),
            truncation=self.truncation,
        )
        eps *= np.float32(self.temperature)
        return eps.reshape(-1, *self.shape)


def fresh_seed() -> int:
    """A random seed of 53 bits, which JavaScript clients can represent exactly."""
    return secrets.randbits(53)


def drawn(mean: Array, log_var: Array, eps: Array) -> Array:
    """Posterior samples by reparameterisation (Kingma and Welling 2014, section 2.4).

    Args:
        mean: float32 [N, D].
        log_var: float32 [N, D].
        eps: Standard normal noise, float32 [N, D].

    Returns:
        mean + exp(log_var / 2) * eps, float32 [N, D].
    """
    z: Array = mean + np.exp(np.float32(0.5) * log_var) * eps
    return z
