"""Encode, Decode, Sample, Reconstruct and Score: from a request to arrays.

How the arrays are written differs: as a message of latentserve.v1, or as tensors of the Open
Inference Protocol. So each operation passes them to a function `write`, which makes the reply while
the capacity of the call is still held.
"""

from collections.abc import Awaitable, Callable
from typing import TypeVar

from latentserve.v1 import latent_service_pb2 as pb
from service.api import fields, labels
from service.api.codec import Pixels
from service.api.fields import draw_of, whole
from service.api.formats import ImageOutput, format_of
from service.api.inputs import Inputs
from service.api.labels import labels_of, targets_of
from service.api.scaling import scaling_of
from service.engine.call import Call
from service.engine.engine import Engine
from service.engine.results import Decoded, Encoded
from service.engine.sampling import Draw
from service.engine.scoring import Scored
from service.models.model import Model
from service.models.speed import ImageSize
from service.settings import Settings

Reply = TypeVar("Reply")


class Operations:
    """Reads requests, reserves capacity for them and computes them.

    The methods raise as the engine does, and InvalidArgument for a field with an invalid value.

    Args:
        engine: Runs the models.
        inputs: Reads images and latents.
        settings: The limits.
    """

    def __init__(self, engine: Engine, inputs: Inputs, settings: Settings):
        self._engine = engine
        self._inputs = inputs
        self._settings = settings

    async def encode(
        self,
        model: Model,
        request: pb.EncodeRequest,
        call: Call,
        write: Callable[[Encoded, Draw | None], Awaitable[Reply]],
    ) -> Reply:
        """Encodes images.

        Args:
            model: The model.
            request: The request.
            call: The per-call context.
            write: Makes the reply from the posteriors, and the noise of their samples; None if
                there are none.
        """
        size = await self._inputs.size(model, request.images, "images", call)
        async with self._inputs.admitted(model, request.images, size, call):
            images = await self._inputs.images(model, request.images, "images", size, call)
            given = labels_of(request.labels, model.manifest, len(images))
            draw = draw_of(request, len(images)) if request.draw else None
            encoded = await self._engine.encode(call, model, images, draw, given)
            return await write(encoded, draw)

    async def decode(
        self,
        model: Model,
        request: pb.DecodeRequest,
        call: Call,
        write: Callable[[Pixels, ImageOutput], Awaitable[Reply]],
    ) -> Reply:
        """Decodes latents.

        Args:
            model: The model.
            request: The request.
            call: The per-call context.
            write: Makes the reply from the images and the format that they are wanted in.
        """
        wanted = format_of(request, model.manifest)
        scaling = scaling_of(request.scaled, model.manifest)
        size = self._inputs.sizes(model).of_latents(tuple(request.latents.shape), "latents")
        z = await self._inputs.latents(
            model, request.latents, "latents", size, call, scaling=scaling
        )
        given = labels_of(request.labels, model.manifest, len(z))
        call.rows += len(z)
        async with self._engine.admitted(call, model, len(z), size):
            pixels = await self._engine.decode(
                call,
                model,
                z,
                as_uint8=wanted.format.as_uint8,
                clipped=wanted.clipped,
                labels=given,
            )
            return await write(pixels, wanted)

    async def sample(
        self,
        model: Model,
        request: pb.SampleRequest,
        draw: Draw,
        size: ImageSize,
        call: Call,
        write: Callable[[Decoded, ImageOutput], Awaitable[Reply]],
    ) -> Reply:
        """Samples from the prior.

        Args:
            model: The model.
            request: The request, whose `count` is valid.
            draw: Seed and offset of the noise.
            size: H and W of the images, if the model's images have no fixed size.
            call: The per-call context.
            write: Makes the reply from the samples and the format that images are wanted in.
        """
        wanted = format_of(request, model.manifest)
        label = fields.label_of(request, model.manifest)
        temperature = fields.temperature_of(request)
        truncation = fields.truncation_of(request)
        call.rows += request.count
        async with self._engine.admitted(call, model, request.count, size):
            sampled = await self._engine.sample(
                call,
                model,
                request.count,
                draw,
                label=label,
                temperature=temperature,
                truncation=truncation,
                as_uint8=wanted.format.as_uint8,
                size=size,
            )
            return await write(sampled, wanted)

    def sampling(self, model: Model, request: pb.SampleRequest) -> tuple[Draw, ImageSize]:
        """Validates the count of a Sample request; returns its noise and the size of its images."""
        sizes = self._inputs.sizes(model)
        size = fields.size_of(request, sizes)
        rows = whole("count", request.count, 1, sizes.max_rows_of(size))
        return draw_of(request, rows), size

    async def reconstruct(
        self,
        model: Model,
        request: pb.ReconstructRequest,
        call: Call,
        write: Callable[[Pixels, ImageOutput, Draw | None], Awaitable[Reply]],
    ) -> Reply:
        """Encodes images and decodes them again.

        Args:
            model: The model.
            request: The request.
            call: The per-call context.
            write: Makes the reply from the images, the format that they are wanted in, and the
                noise of the samples that they were decoded from; None if there are none.
        """
        wanted = format_of(request, model.manifest)
        scaling_of(request.scaled, model.manifest)  # cancels out between encoder and decoder
        size = await self._inputs.size(model, request.images, "images", call)
        each = labels.images_for_each(request)
        async with self._inputs.admitted(model, request.images, size, call, each):
            images = await self._inputs.images(model, request.images, "images", size, call)
            rows, limit = len(images), self._inputs.sizes(model).max_rows_of(size)
            given = labels_of(request.labels, model.manifest, rows)
            targets = targets_of(request, model.manifest, rows, limit, given)
            call.rows += rows * (each - 1)
            draw = draw_of(request, rows) if request.draw else None
            pixels = await self._engine.reconstruct(
                call,
                model,
                images,
                draw,
                as_uint8=wanted.format.as_uint8,
                clipped=wanted.clipped,
                labels=given,
                targets=targets,
            )
            return await write(pixels, wanted, draw)

    async def score(
        self,
        model: Model,
        request: pb.ScoreRequest,
        call: Call,
        write: Callable[[Scored, Draw | None], Awaitable[Reply]],
    ) -> Reply:
        """Scores images.

        Args:
            model: The model.
            request: The request.
            call: The per-call context.
            write: Makes the reply from the scores, and the noise of the draws for the
                importance-weighted bound; None if there are none.
        """
        draws = whole("draws", request.draws, 0, self._settings.max_score_draws)
        size = await self._inputs.size(model, request.images, "images", call)
        async with self._inputs.admitted(model, request.images, size, call):
            images = await self._inputs.images(model, request.images, "images", size, call)
            given = labels_of(request.labels, model.manifest, len(images))
            draw = draw_of(request, len(images)) if draws else None
            scored = await self._engine.score(call, model, images, draws, draw or Draw(0), given)
            return await write(scored, draw)
