"""Inference: encode, decode, sample, reconstruct, interpolate, score; NumPy in, NumPy out.

The rows of a call go through the model's graphs in the batches that the batcher forms, within
the bounds of admission control. A result depends on the call's own rows alone, not on other calls
in the same batches.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from common.noise import Stream, standard_normal, uniform
from service.engine import paths
from service.engine.admission import Admission, Admitted
from service.engine.background import Background
from service.engine.batch import Arrays, InferenceRequest, Operation
from service.engine.batcher import INLINE_SECONDS, Batcher
from service.engine.call import Call
from service.engine.operations import Array, Check, Observer, Operations, Pixels, unit_range
from service.engine.pool import Pool
from service.engine.sampling import Draw, drawn
from service.engine.scoring import Scored, Scoring
from service.errors import NotForThisModel
from service.models.limits import row_bytes
from service.models.model import Model

T = TypeVar("T")
# Threads for blocking work other than graphs, in addition to one per CPU: some wait for the GIL.
_MORE_THREADS, _MAX_THREADS = 4, 32
#: Computes rows for a call with one operation; returns its output arrays by name.
Compute = Callable[[Call, NDArray[Any]], Awaitable[Arrays]]


class Encoded(NamedTuple):
    """Posteriors of images.

    Attributes:
        mean: Means, float32 [N, D].
        log_var: Log-variances, float32 [N, D]; None for a plain autoencoder.
        z: Samples, float32 [N, D]; None if none were drawn.
    """

    mean: Array
    log_var: Array | None
    z: Array | None = None


@dataclass(frozen=True)
class Decoded:
    """Images and the latents they were decoded from.

    Attributes:
        images: [N, C, H, W]; uint8, or float32 in [0, 1].
        latents: float32 [N, D].
    """

    images: Pixels
    latents: Array


class Engine:
    """Runs the models for all calls; used from one event loop only.

    Args:
        admission: Bounds the rows and bytes in flight.
        observer: Notified of every batch.
        workers: Number of batches that run at the same time.
        window: Seconds that a batch waits for more rows if it is not full.
        inline: Longest batch, in seconds, that runs on the event loop itself.
        max_compute_bytes: Maximum memory of running batches; 0 for no limit.
    """

    def __init__(
        self,
        admission: Admission,
        observer: Observer,
        workers: int = 1,
        window: float = 0.0,
        inline: float = INLINE_SECONDS,
        max_compute_bytes: int = 0,
    ):
        self.admission = admission
        # With one worker, a slow row runs in a second thread.
        self._pool = Pool(max(2, workers))
        self._background = Background(min(_MAX_THREADS, usable_cpus() + _MORE_THREADS))
        self._observer = observer
        self._batcher = Batcher(
            self._pool,
            workers,
            observer,
            window=window,
            inline=inline,
            max_bytes=max_compute_bytes,
        )
        self._operations: WeakKeyDictionary[Model, Operations] = WeakKeyDictionary()

    def admitted(self, call: Call, model: Model, rows: int) -> Admitted:
        """Returns an async context manager that holds capacity for a call's rows.

        Raises:
            Overloaded: The limits are reached and `call.patient` is false.
        """
        return self.admission.admitted(
            rows, rows * row_bytes(model.manifest), patient=call.patient, caller=call.caller
        )

    def encode(
        self, call: Call, model: Model, images: Pixels, draw: Draw | None = None
    ) -> Awaitable[Encoded]:
        """Encodes images and, with `draw`, samples from their posteriors.

        Args:
            call: The per-call context.
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draw: Seed and offset of the noise, or None not to sample.

        Raises:
            NotForThisModel: `draw` is set, but a plain autoencoder has no posterior.
        """
        if draw is not None and model.manifest.posterior == "delta":
            raise NotForThisModel(
                f"draw: {model.manifest.name} is a plain autoencoder; it has no posterior to draw "
                "from"
            )

        def finish(outputs: Arrays) -> Encoded:
            mean, log_var = outputs["mean"], outputs.get("log_var")
            if draw is None or log_var is None:
                return Encoded(mean, log_var)
            eps = standard_normal(draw.seed, draw.offset, *mean.shape, stream=Stream.POSTERIOR)
            return Encoded(mean, log_var, drawn(mean, log_var, eps))

        operation = self._operations_of(model).encode[images.dtype == np.uint8]
        work = InferenceRequest(operation, len(images), {"image": images}, finish)
        return self._batcher.run(work, call)

    def encoding(self, model: Model, check: Check | None = None) -> Compute:
        """Returns a function that encodes images to `mean` and `log_var`, without sampling.

        Args:
            model: The model.
            check: Validates float32 images [N, C, H, W]; None for uint8 images, whose values
                are all valid.
        """
        operations = self._operations_of(model)
        return self._computing(
            operations.encode[True]
            if check is None
            else operations.checked(operations.encode[False], check),
            "image",
        )

    def decoding(self, model: Model, check: Check, *, as_uint8: bool) -> Compute:
        """Returns a function that decodes latents to `image`.

        Args:
            model: The model.
            check: Validates latents, float32 [N, D].
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
        """
        operations = self._operations_of(model)
        return self._computing(operations.checked(operations.decode[as_uint8], check), "z")

    async def decode(self, call: Call, model: Model, z: Array, *, as_uint8: bool) -> Pixels:
        """Decodes latents to images [N, C, H, W].

        Args:
            call: The per-call context.
            model: The model.
            z: float32 [N, D].
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
        """
        operation = self._operations_of(model).decode[as_uint8]
        work: InferenceRequest[Arrays] = InferenceRequest(operation, len(z), {"z": z})
        return (await self._batcher.run(work, call))["image"]

    async def sample(
        self,
        call: Call,
        model: Model,
        count: int,
        draw: Draw,
        *,
        label: int,
        temperature: float,
        truncation: float | None,
        as_uint8: bool,
    ) -> Decoded:
        """Samples latents from the model's prior and decodes them.

        Args:
            call: The per-call context.
            model: The model.
            count: Number of samples, N.
            draw: Seed and offset of the noise; row i is a function of (seed, offset + i) alone.
            label: The class to sample; -1 for any.
            temperature: Factor on the standard deviation of the noise (within a component, if
                the prior is a mixture).
            truncation: Bound on the absolute value of the noise, before `temperature` is
                applied; None for no bound.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].

        Raises:
            NotForThisModel: The model has no prior.
        """
        manifest = model.manifest
        if manifest.prior == "none":
            raise NotForThisModel(
                f"{manifest.name} is a plain autoencoder; it has no prior to sample from"
            )

        def noise(start: int, stop: int) -> Array:
            eps = standard_normal(
                draw.seed,
                draw.offset + start,
                stop - start,
                manifest.latent_dim,
                truncation=truncation,
            )
            eps *= np.float32(temperature)
            return eps

        operations = self._operations_of(model)
        if manifest.learned_prior:

            def choice(start: int, stop: int) -> Arrays:
                return {
                    "eps": noise(start, stop),
                    "u": uniform(draw.seed, draw.offset + start, stop - start),
                    "label": np.full(stop - start, label, np.int64),
                }

            drawn: InferenceRequest[Arrays] = InferenceRequest(operations.prior, count, choice)
            latents: Arrays = {"z": (await self._batcher.run(drawn, call))["z"]}
            work: InferenceRequest[Arrays] = InferenceRequest(
                operations.sample[as_uint8], count, latents
            )
        else:
            work = InferenceRequest(
                operations.sample[as_uint8], count, lambda start, stop: {"z": noise(start, stop)}
            )
        outputs = await self._batcher.run(work, call)
        return Decoded(outputs["image"], outputs["z"])

    async def reconstruct(
        self, call: Call, model: Model, images: Pixels, draw: Draw | None, *, as_uint8: bool
    ) -> Pixels:
        """Encodes images and decodes the posterior means, or samples of the posteriors.

        Args:
            call: The per-call context.
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draw: Seed and offset of the noise, or None for the means.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].

        Raises:
            NotForThisModel: `draw` is set, but a plain autoencoder has no posterior.
        """
        encoded = await self.encode(call, model, images, draw)
        z = encoded.mean if encoded.z is None else encoded.z
        return await self.decode(call, model, z, as_uint8=as_uint8)

    async def interpolate(
        self,
        call: Call,
        model: Model,
        ends: Array,
        steps: int,
        *,
        on_arc: bool,
        as_uint8: bool,
    ) -> Decoded:
        """Decodes a path from one latent to another.

        Args:
            call: The per-call context.
            model: The model.
            ends: The first and last latent, float32 [2, D].
            steps: Number of points, both ends included; at least 2.
            on_arc: Whether to interpolate spherically rather than linearly.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
        """
        path = (paths.spherical if on_arc else paths.linear)(ends[0], ends[1], steps)
        return Decoded(await self.decode(call, model, path, as_uint8=as_uint8), path)

    async def score(
        self, call: Call, model: Model, images: Pixels, draws: int, draw: Draw
    ) -> Scored:
        """Computes the ELBO and the importance-weighted bound of images under the model.

        Args:
            call: The per-call context.
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draws: K, draws per image for the importance-weighted bound; 0 to leave it out.
            draw: Seed and offset of the noise of these draws.

        Raises:
            NotForThisModel: The model is a plain autoencoder, which has no likelihood.
        """
        if model.manifest.posterior == "delta":
            raise NotForThisModel(
                f"{model.manifest.name} is a plain autoencoder; it has no likelihood to score by"
            )
        encoded = await self.encode(call, model, images)
        assert encoded.log_var is not None  # a Gaussian posterior has one
        pixels = await self.in_thread(lambda: unit_range(images), call)
        scoring = Scoring(
            self._batcher, self._background, self._operations_of(model), model.manifest, call
        )
        return await scoring.score(pixels, encoded.mean, encoded.log_var, draws, draw)

    def in_thread(self, work: Callable[[], T], call: Call) -> Awaitable[T]:
        """Runs blocking work of a call, other than a graph, in a thread off the event loop."""
        return self._background.run(work, call.caller)

    def close(self) -> None:
        """Finishes the dispatched batches and ends the compute threads."""
        self._pool.close()
        self._background.close()

    def _computing(self, operation: Operation, name: str) -> Compute:
        run = self._batcher.run

        def compute(call: Call, rows: NDArray[Any]) -> Awaitable[Arrays]:
            work: InferenceRequest[Arrays] = InferenceRequest(operation, len(rows), {name: rows})
            return run(work, call)

        return compute

    def _operations_of(self, model: Model) -> Operations:
        operations = self._operations.get(model)
        if operations is None:
            operations = self._operations[model] = Operations(model, self._observer)
        return operations
