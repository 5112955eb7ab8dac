"""How likely images are under a model: what its ELBO is made of, and a tighter bound."""

import asyncio
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from common import likelihood
from common.noise import Stream, standard_normal
from service.engine.batch import Work
from service.engine.batcher import Batcher
from service.engine.call import Call
from service.engine.operations import Array, Operations
from service.engine.sampling import ANY_LABEL, Draw, drawn

Nats = NDArray[np.float64]

# Rows that draws are computed in at a time: as many as fill a batch.
_ROWS = 256


@dataclass(frozen=True)
class Scored:
    """How likely images are, float64 [N] each, in nats; see ScoreResponse."""

    reconstruction: Nats
    kl: Nats
    nll: Nats | None
    percentile: Nats | None

    @property
    def elbo(self) -> Nats:
        """The negative ELBO at the posterior mean."""
        return self.reconstruction + self.kl


class Scoring:
    """Scores the images of one call by the posteriors that they were encoded to.

    Args:
        batcher: Computes.
        operations: Of the model's work.
        manifest: The model's; its posterior is Gaussian.
        call: For whom.
    """

    def __init__(self, batcher: Batcher, operations: Operations, manifest: Manifest, call: Call):
        self._batcher = batcher
        self._operations = operations
        self._manifest = manifest
        self._call = call

    async def score(
        self, images: Array, mean: Array, log_var: Array, draws: int, draw: Draw
    ) -> Scored:
        """Scores images.

        Args:
            images: float32 [N, C, H, W] in [0, 1].
            mean: Of their posteriors, [N, D].
            log_var: Of their posteriors, [N, D].
            draws: K, draws of the importance-weighted bound (Burda et al. 2016); 0 for none.
            draw: The noise of these draws.
        """
        reconstruction = await self._nll(mean, images)
        if self._manifest.learned_prior:
            density = likelihood.gaussian_log_density(mean, mean, log_var)
            kl = density - await self._log_prior(mean)
        else:
            kl = likelihood.standard_kl(mean, log_var)
        nll = await self._bound(images, mean, log_var, draws, draw) if draws else None
        table = self._manifest.score_percentiles
        percentile = likelihood.percentile(reconstruction + kl, table) if table else None
        return Scored(reconstruction, kl, nll, percentile)

    async def _bound(
        self, pixels: Array, mean: Array, log_var: Array, draws: int, draw: Draw
    ) -> Nats:
        rows, dim = mean.shape
        bound = likelihood.ImportanceBound(rows)
        at_once = max(1, _ROWS // rows)
        for first in range(0, draws, at_once):
            numbers = range(first, min(first + at_once, draws))
            means, log_vars, images = (
                np.tile(each, (len(numbers), *[1] * (each.ndim - 1)))
                for each in (mean, log_var, pixels)
            )

            def noise(numbers: range = numbers) -> Array:
                return np.concatenate(
                    [
                        standard_normal(
                            draw.seed, draw.offset, rows, dim, stream=Stream.SCORE, draw=number
                        )
                        for number in numbers
                    ]
                )

            z = drawn(means, log_vars, await asyncio.to_thread(noise))
            log_weights = await self._log_prior(z)
            log_weights -= await self._nll(z, images)
            log_weights -= likelihood.gaussian_log_density(z, means, log_vars)
            for weights in log_weights.reshape(len(numbers), rows):
                bound.add(weights)
        return bound.nll()

    async def _nll(self, z: Array, images: Array) -> Nats:
        """-log p(x|z), [N]."""
        work = Work(
            self._operations.logits,
            len(z),
            {"z": z},
            lambda outputs: likelihood.bernoulli_nll(outputs["logits"], images),
        )
        return await self._batcher.run(work, self._call)

    async def _log_prior(self, z: Array) -> Nats:
        """Log p(z), [N]."""
        if not self._manifest.learned_prior:
            return likelihood.gaussian_log_density(z)
        work = Work(
            self._operations.density,
            len(z),
            {"z": z, "label": np.full(len(z), ANY_LABEL, np.int64)},
            lambda outputs: outputs["log_prob"].astype(np.float64),
        )
        return await self._batcher.run(work, self._call)
