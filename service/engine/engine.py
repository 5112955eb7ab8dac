"""Inference: encode, decode, sample, reconstruct, interpolate, score; NumPy in, NumPy out.

The rows of a call go through the model's graphs in the batches that the batcher forms, within
the bounds of admission control. A result depends on the call's own rows alone, not on other calls
in the same batches.
"""

import math
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from common.noise import Stream, standard_normal
from service.engine import paths
from service.engine.admission import Admission, Admitted
from service.engine.background import Background
from service.engine.batcher import INLINE_SECONDS, Batcher
from service.engine.call import Call
from service.engine.entry import QueueEntry
from service.engine.operations import (
    Array,
    Labels,
    Observer,
    Operations,
    Pixels,
    unit_range,
    with_labels,
)
from service.engine.pool import Pool
from service.engine.request import Arrays, InferenceRequest, Operation
from service.engine.results import Decoded, Encoded
from service.engine.sampling import Choice, Draw, drawn
from service.engine.scoring import Scored, Scoring
from service.errors import NotForThisModel
from service.models.limits import row_bytes
from service.models.model import Model
from service.models.speed import ImageSize

T = TypeVar("T")
# Threads for blocking work other than graphs, in addition to one per CPU: some wait for the GIL.
_MORE_THREADS, _MAX_THREADS = 4, 32
# Paths of up to this size are computed in less time than it takes to wake a thread.
_INLINE_BYTES = 256 * 1024
#: Computes rows for a call with one operation, with their labels if the model is conditional, and
#: calls a function once that has ended. The result is its output arrays by name.
Compute = Callable[[Call, NDArray[Any], Labels, Callable[[QueueEntry], None]], QueueEntry]


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
        # With one worker, a slow row runs in a second thread; beside long rows, one more runs.
        self._pool = Pool(max(2, workers) + 1)
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

    def admitted(self, call: Call, model: Model, rows: int, size: ImageSize = ()) -> Admitted:
        """Returns an async context manager that holds capacity for a call's rows.

        Args:
            call: The per-call context.
            model: The model.
            rows: Rows of the call.
            size: H and W of their images, if the model's images have no fixed size.

        Raises:
            Overloaded: The limits are reached and `call.patient` is false.
        """
        return self.admission.admitted(
            rows, rows * row_bytes(model.manifest, size), patient=call.patient, caller=call.caller
        )

    def encode(
        self,
        call: Call,
        model: Model,
        images: Pixels,
        draw: Draw | None = None,
        labels: Labels = None,
    ) -> Awaitable[Encoded]:
        """Encodes images and, with `draw`, samples from their posteriors.

        Args:
            call: The per-call context.
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draw: Seed and offset of the noise, or None not to sample.
            labels: Class of each image, int64 [N], if the model is conditional; else None.

        Raises:
            NotForThisModel: The model has no encoder; or `draw` is set, but a plain autoencoder
                has no posterior.
        """
        _refuse_without_encoder(model)
        if draw is not None and model.manifest.posterior == "delta":
            raise NotForThisModel(
                f"draw: {model.manifest.name} is a plain autoencoder; it has no posterior to draw "
                "from"
            )

        def finish(outputs: Arrays) -> Encoded:
            mean, log_var = outputs["mean"], outputs.get("log_var")
            if draw is None or log_var is None:
                return Encoded(mean, log_var)
            rows, dim = len(mean), math.prod(mean.shape[1:])
            eps = standard_normal(draw.seed, draw.offset, rows, dim, stream=Stream.POSTERIOR)
            return Encoded(mean, log_var, drawn(mean, log_var, eps.reshape(mean.shape)))

        operation = self._operations_of(model).encode[images.dtype == np.uint8]
        size = _size_of_images(model, images)
        inputs = with_labels({"image": images}, labels)
        work = InferenceRequest(operation, len(images), inputs, finish, size)
        return self._batcher.run(work, call)

    def encoding(self, model: Model, *, as_uint8: bool, size: ImageSize = ()) -> Compute:
        """Returns a function that encodes images to `mean` and `log_var`, without sampling.

        It validates float32 images; errors name them `image`.

        Args:
            model: The model; it has an encoder.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
            size: H and W of the images, if the model's images have no fixed size.
        """
        operations = self._operations_of(model)
        operation = operations.encode[True] if as_uint8 else operations.encode_checked
        return self._computing(operation, "image", size)

    def decoding(self, model: Model, *, as_uint8: bool, size: ImageSize = ()) -> Compute:
        """Returns a function that decodes latents to `image`.

        It validates the latents; errors name them `z`.

        Args:
            model: The model.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
            size: H and W of the images, if the model's images have no fixed size.
        """
        operation = self._operations_of(model).decode_checked[as_uint8]
        return self._computing(operation, "z", size)

    async def decode(
        self,
        call: Call,
        model: Model,
        z: Array,
        *,
        as_uint8: bool,
        clipped: bool = True,
        labels: Labels = None,
    ) -> Pixels:
        """Decodes latents to images [N, C, H, W].

        Args:
            call: The per-call context.
            model: The model.
            z: float32 [N, D] or [N, c, h, w].
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
            clipped: Whether float32 images are clipped to [0, 1].
            labels: As for `encode`.
        """
        operations = self._operations_of(model)
        operation = operations.decode[as_uint8] if clipped else operations.raw
        size = _size_of_latents(model, z)
        inputs = with_labels({"z": z}, labels)
        work: InferenceRequest[Arrays] = InferenceRequest(operation, len(z), inputs, None, size)
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
        size: ImageSize = (),
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
            size: H and W of the images, if the model's images have no fixed size.

        Raises:
            NotForThisModel: The model has no prior.
        """
        manifest = model.manifest
        if manifest.prior == "none":
            what = f"{manifest.name} is a plain autoencoder; it has"
            if manifest.posterior != "delta":
                what = f"{manifest.name} has"
            raise NotForThisModel(f"{what} no prior to sample from")
        shape = manifest.latent_shape_of(*size) if size else manifest.latent_shape
        choice = Choice(manifest, draw, shape, label, temperature, truncation)
        operations = self._operations_of(model)
        inputs: Arrays | Callable[[int, int], Arrays] = choice.latents
        if manifest.learned_prior:
            drawn: InferenceRequest[Arrays] = InferenceRequest(
                operations.prior, count, choice.noise
            )
            z = (await self._batcher.run(drawn, call))["z"]
            inputs = partial(choice.given, z) if manifest.conditional else {"z": z}
        work: InferenceRequest[Arrays] = InferenceRequest(
            operations.sample[as_uint8], count, inputs, size=size
        )
        outputs = await self._batcher.run(work, call)
        return Decoded(outputs["image"], outputs["z"], outputs.get("label"))

    async def reconstruct(
        self,
        call: Call,
        model: Model,
        images: Pixels,
        draw: Draw | None,
        *,
        as_uint8: bool,
        clipped: bool = True,
        labels: Labels = None,
        targets: Labels = None,
    ) -> Pixels:
        """Encodes images and decodes the posterior means, or samples of the posteriors.

        Args:
            call: The per-call context.
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draw: Seed and offset of the noise, or None for the means.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
            clipped: Whether float32 images are clipped to [0, 1].
            labels: As for `encode`.
            targets: Classes to decode with, int64 [N * M] with M for each image, if the model is
                conditional; else None.

        Returns:
            [N * M, C, H, W], or [N, C, H, W] without targets.

        Raises:
            NotForThisModel: As for `encode`.
        """
        encoded = await self.encode(call, model, images, draw, labels)
        z = encoded.mean if encoded.z is None else encoded.z
        if targets is not None and len(targets) > len(z):
            z = np.repeat(z, len(targets) // len(z), axis=0)
        return await self.decode(call, model, z, as_uint8=as_uint8, clipped=clipped, labels=targets)

    async def interpolate(
        self,
        call: Call,
        model: Model,
        ends: Array,
        steps: int,
        *,
        on_arc: bool,
        as_uint8: bool,
        labels: Labels = None,
    ) -> Decoded:
        """Decodes a path from one latent to another.

        Args:
            call: The per-call context.
            model: The model.
            ends: The first and last latent, float32 [2, D] or [2, c, h, w].
            steps: Number of points, both ends included; at least 2.
            on_arc: Whether to interpolate spherically rather than linearly.
            as_uint8: Whether images are uint8, 0 to 255, rather than float32 in [0, 1].
            labels: Class of each point, int64 [steps], if the model is conditional; else None.
        """

        def between() -> Array:
            return (paths.spherical if on_arc else paths.linear)(ends[0], ends[1], steps)

        large = steps * ends[0].nbytes > _INLINE_BYTES
        path = await self.in_thread(between, call) if large else between()
        images = await self.decode(call, model, path, as_uint8=as_uint8, labels=labels)
        return Decoded(images, path)

    async def score(
        self,
        call: Call,
        model: Model,
        images: Pixels,
        draws: int,
        draw: Draw,
        labels: Labels = None,
    ) -> Scored:
        """Computes the ELBO and the importance-weighted bound of images under the model.

        Args:
            call: The per-call context.
            model: The model.
            images: [N, C, H, W]; uint8, or float32 in [0, 1].
            draws: K, draws per image for the importance-weighted bound; 0 to leave it out.
            draw: Seed and offset of the noise of these draws.
            labels: As for `encode`.

        Raises:
            NotForThisModel: The model has no likelihood, posterior or prior.
        """
        manifest = model.manifest
        _refuse_without_encoder(model)
        if manifest.posterior == "delta":
            raise NotForThisModel(
                f"{manifest.name} is a plain autoencoder; it has no likelihood to score by"
            )
        if "none" in (manifest.likelihood, manifest.prior):
            lacking = "likelihood" if manifest.likelihood == "none" else "prior"
            raise NotForThisModel(f"{manifest.name} has no {lacking} to score by")
        encoded = await self.encode(call, model, images, labels=labels)
        assert encoded.log_var is not None  # a Gaussian posterior has one
        pixels = await self.in_thread(lambda: unit_range(images), call)
        scoring = Scoring(
            self._batcher, self._background, self._operations_of(model), manifest, call
        )
        return await scoring.score(pixels, encoded.mean, encoded.log_var, draws, draw, labels)

    def in_thread(self, work: Callable[[], T], call: Call) -> Awaitable[T]:
        """Runs blocking work of a call, other than a graph, in a thread off the event loop."""
        return self._background.run(work, call.caller)

    def close(self) -> None:
        """Finishes the dispatched batches and ends the compute threads."""
        self._pool.close()
        self._background.close()

    def _computing(self, operation: Operation, name: str, size: ImageSize) -> Compute:
        submit = self._batcher.submit

        def compute(
            call: Call, rows: NDArray[Any], labels: Labels, done: Callable[[QueueEntry], None]
        ) -> QueueEntry:
            inputs = {name: rows} if labels is None else {name: rows, "label": labels}
            work: InferenceRequest[Arrays] = InferenceRequest(
                operation, len(rows), inputs, None, size
            )
            return submit(work, call, done)

        return compute

    def _operations_of(self, model: Model) -> Operations:
        operations = self._operations.get(model)
        if operations is None:
            operations = self._operations[model] = Operations(model, self._observer)
        return operations


def _refuse_without_encoder(model: Model) -> None:
    manifest = model.manifest
    if manifest.posterior == "none":
        raise NotForThisModel(f"{manifest.name} is a decoder alone; it has no encoder")


def _size_of_images(model: Model, images: Pixels) -> ImageSize:
    """H and W of images [N, C, H, W] if the model's images have no fixed size, else empty."""
    return images.shape[2:] if model.manifest.sizes is not None else ()


def _size_of_latents(model: Model, z: Array) -> ImageSize:
    """H and W of the images that latents are decoded to, like `_size_of_images`."""
    sizes = model.manifest.sizes
    return () if sizes is None else (sizes.factor * z.shape[2], sizes.factor * z.shape[3])
