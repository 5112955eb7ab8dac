"""Scores of images under a model: the terms of the ELBO, and an importance-weighted bound."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bundle import Manifest
from common import likelihood
from common.noise import Stream, standard_normal
from service.engine.background import Background
from service.engine.batcher import Batcher
from service.engine.call import Call
from service.engine.operations import Array, Labels, Operations, with_labels
from service.engine.request import InferenceRequest
from service.engine.sampling import ANY_LABEL, Draw, drawn

Nats = NDArray[np.float64]

# Rows submitted at a time, draws times images: enough to fill a batch.
_ROWS = 256
# Bytes of images that are repeated at a time, since there are large ones.
_BYTES = 32 * 2**20


@dataclass(frozen=True)
class Scored:
    """Scores of N images, float64 [N]; in nats, except the percentile.

    Attributes:
        reconstruction: Negative log-likelihood of the image at the posterior mean.
        kl: KL(posterior || prior); estimated at the posterior mean for a learned prior, for which
            there is no closed form.
        nll: Importance-weighted bound on -log p(x); None without draws.
        percentile: Share of the training images with a lower negative ELBO, in percent; None
            if the bundle has no table of percentiles.
    """

    reconstruction: Nats
    kl: Nats
    nll: Nats | None
    percentile: Nats | None

    @property
    def elbo(self) -> Nats:
        """Negative ELBO at the posterior mean, float64 [N]: the field `elbo` of the reply."""
        return self.reconstruction + self.kl


class Scoring:
    """Scores the images of one call, given their posteriors.

    Args:
        batcher: Runs the graphs.
        background: Draws the noise.
        operations: The model's operations.
        manifest: The model's manifest; the posterior must be Gaussian.
        call: The call.
    """

    def __init__(
        self,
        batcher: Batcher,
        background: Background,
        operations: Operations,
        manifest: Manifest,
        call: Call,
    ):
        self._batcher = batcher
        self._background = background
        self._operations = operations
        self._manifest = manifest
        self._call = call
        # Shape of one latent. Latents are flat here, and get it back where they are decoded.
        self._shape: tuple[int, ...] = ()

    async def score(
        self,
        images: Array,
        mean: Array,
        log_var: Array,
        draws: int,
        draw: Draw,
        labels: Labels = None,
    ) -> Scored:
        """Scores images.

        Args:
            images: float32 [N, C, H, W] in [0, 1].
            mean: Means of their posteriors, float32 [N, D] or [N, c, h, w].
            log_var: Log-variances of their posteriors, of the same shape.
            draws: K, number of draws for the importance-weighted bound (Burda et al. 2016);
                0 for none.
            draw: Seed and offset of the noise of these draws.
            labels: Class of each image, int64 [N], if the model is conditional; else None.
        """
        self._shape = mean.shape[1:]
        mean, log_var = mean.reshape(len(mean), -1), log_var.reshape(len(mean), -1)
        reconstruction = await self._nll(mean, images, labels)
        if self._manifest.learned_prior:
            density = likelihood.gaussian_log_density(mean, mean, log_var)
            kl = density - await self._log_prior(mean)
        else:
            kl = likelihood.standard_kl(mean, log_var)
        nll = await self._bound(images, mean, log_var, draws, draw, labels) if draws else None
        table = self._manifest.score_percentiles
        percentile = likelihood.percentile(reconstruction + kl, table) if table else None
        return Scored(reconstruction, kl, nll, percentile)

    async def _bound(
        self,
        pixels: Array,
        mean: Array,
        log_var: Array,
        draws: int,
        draw: Draw,
        labels: Labels,
    ) -> Nats:
        rows, dim = mean.shape
        bound = likelihood.ImportanceBound(rows)
        at_once = max(1, min(_ROWS // rows, _BYTES // pixels.nbytes))
        for first in range(0, draws, at_once):
            numbers = range(first, min(first + at_once, draws))
            means, log_vars, images = (
                array
                if len(numbers) == 1
                else np.tile(array, (len(numbers), *[1] * (array.ndim - 1)))
                for array in (mean, log_var, pixels)
            )
            classes = None if labels is None else np.tile(labels, len(numbers))

            def noise(numbers: range = numbers) -> Array:
                return np.concatenate(
                    [
                        standard_normal(
                            draw.seed, draw.offset, rows, dim, stream=Stream.SCORE, draw=number
                        )
                        for number in numbers
                    ]
                )

            z = drawn(means, log_vars, await self._background.run(noise, self._call.caller))
            log_weights = await self._log_prior(z)
            log_weights -= await self._nll(z, images, classes)
            log_weights -= likelihood.gaussian_log_density(z, means, log_vars)
            for weights in log_weights.reshape(len(numbers), rows):
                bound.add(weights)
        return bound.nll()

    async def _nll(self, z: Array, images: Array, labels: Labels) -> Nats:
        """Negative log-likelihood of images given latents and labels, -log p(x|z), float64 [N]."""
        kind, output = self._manifest.likelihood, self._manifest.likelihood_output
        assert kind != "none"
        request = InferenceRequest(
            self._operations.likelihood,
            len(z),
            with_labels({"z": z.reshape(-1, *self._shape)}, labels),
            lambda outputs: likelihood.pixel_nll(kind, outputs[output], images),
            images.shape[2:] if self._manifest.sizes is not None else (),
        )
        return await self._batcher.run(request, self._call)

    async def _log_prior(self, z: Array) -> Nats:
        """Log-density of latents under the prior, log p(z), float64 [N]."""
        if not self._manifest.learned_prior:
            return likelihood.gaussian_log_density(z)
        request = InferenceRequest(
            self._operations.density,
            len(z),
            {"z": z, "label": np.full(len(z), ANY_LABEL, np.int64)},
            lambda outputs: outputs["log_prob"].astype(np.float64),
        )
        return await self._batcher.run(request, self._call)
