"""The RPCs of LatentService, independent of the transport.

Each method takes a request, or an iterator of requests, and the per-call context. It returns the
reply, or an iterator of replies, or raises a ServiceError. A reply is a message or, if it has a
large payload, a serialised message in chunks.
"""

import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar

from latentserve.v1 import latent_service_pb2 as pb
from service.api import fields, labels
from service.api.answer import Answer
from service.api.codec import Pixels
from service.api.describe import describe_map, describe_model, describe_server
from service.api.fast_path import FastPath
from service.api.fields import draw_of, latent_dtype_of, whole
from service.api.formats import ImageOutput, format_of
from service.api.inputs import Inputs
from service.api.operations import Operations
from service.api.replies import in_stream, put_latents, put_scores, signed, with_images
from service.api.scaling import scaling_of
from service.api.selection import Selection
from service.api.streams import in_order
from service.api.wire import Chunks
from service.engine.call import Call, Timing
from service.engine.engine import Engine
from service.engine.paths import traverse
from service.engine.results import Decoded, Encoded
from service.engine.sampling import Draw
from service.engine.scoring import Scored
from service.errors import InvalidArgument
from service.models.model import Model
from service.models.repository import Models
from service.models.speed import ImageSize
from service.settings import Settings

Request = TypeVar("Request")
Reply = TypeVar("Reply")

# Images in one reply of SampleStream, unless the request sets `chunk_rows`.
_CHUNK_ROWS = 256


class Servicer:
    """The RPCs of LatentService.

    Args:
        engine: Runs the models.
        models: Returns the models that are being served.
        settings: The limits.
        fast_path: Whether Encode and Decode use cached plans (`FastPath`).

    Attributes:
        engine: As given.
        models: As given.
        settings: As given.
        inputs: Reads images and latents.
        selection: Looks up the models.
        operations: Computes requests.
        fast_path: Answers common requests; None if it is turned off.
    """

    def __init__(
        self,
        engine: Engine,
        models: Callable[[], Models],
        settings: Settings,
        *,
        fast_path: bool = True,
    ):
        self.engine = engine
        self.models = models
        self.selection = Selection(models)
        self.settings = settings
        self.inputs = Inputs(engine, settings)
        self.operations = Operations(engine, self.inputs, settings)
        self.fast_path = FastPath(engine, self.inputs.sizes) if fast_path else None

    async def get_server_info(
        self, _request: pb.GetServerInfoRequest, _call: Call
    ) -> pb.GetServerInfoResponse:
        """Describes the server: versions, limits and models."""
        return describe_server(self.models(), self.settings)

    async def list_models(
        self, _request: pb.ListModelsRequest, _call: Call
    ) -> pb.ListModelsResponse:
        """Describes every model that is being served."""
        return pb.ListModelsResponse(
            models=[describe_model(model, self.settings) for model in self.models()]
        )

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """Describes one model."""
        model = self.selection.find(request, call, shared=False)
        return pb.GetModelResponse(model=describe_model(model, self.settings))

    async def get_latent_map(
        self, request: pb.GetLatentMapRequest, call: Call
    ) -> pb.GetLatentMapResponse:
        """Returns where test images lie in the latent space of a model."""
        return describe_map(self.selection.find(request, call, shared=False), self.settings)

    def encode(
        self, request: pb.EncodeRequest, call: Call
    ) -> Awaitable[pb.EncodeResponse | Chunks]:
        """Maps images to their posteriors."""
        model = self.selection.find(request, call)
        fast = self.fast_path and self.fast_path.encode(model, request, call)
        return fast or self._encode(model, request, call)

    def plan_encode(self, request: pb.EncodeRequest, call: Call) -> Answer | None:
        """Answers `encode` by a cached plan, if there is one for the request."""
        if self.fast_path is None:
            return None
        return self.fast_path.encode(self.selection.find(request, call), request, call)

    def decode(
        self, request: pb.DecodeRequest, call: Call
    ) -> Awaitable[pb.DecodeResponse | Chunks]:
        """Maps latents to images."""
        model = self.selection.find(request, call)
        fast = self.fast_path and self.fast_path.decode(model, request, call)
        return fast or self._decode(model, request, call)

    def plan_decode(self, request: pb.DecodeRequest, call: Call) -> Answer | None:
        """Answers `decode` by a cached plan, if there is one for the request."""
        if self.fast_path is None:
            return None
        return self.fast_path.decode(self.selection.find(request, call), request, call)

    async def sample(self, request: pb.SampleRequest, call: Call) -> pb.SampleResponse | Chunks:
        """Draws latents from the prior and decodes them."""
        model = self.selection.find(request, call)
        return await self._sample(model, request, *self.operations.sampling(model, request), call)

    async def reconstruct(
        self, request: pb.ReconstructRequest, call: Call
    ) -> pb.ReconstructResponse | Chunks:
        """Encodes images and decodes them again."""
        model = self.selection.find(request, call)

        async def write(
            pixels: Pixels, wanted: ImageOutput, draw: Draw | None
        ) -> pb.ReconstructResponse | Chunks:
            reply = pb.ReconstructResponse(seed=None if draw is None else draw.seed)
            return await with_images(self.engine, signed(reply, model, call), pixels, wanted, call)

        return await self.operations.reconstruct(model, request, call, write)

    async def interpolate(
        self, request: pb.InterpolateRequest, call: Call
    ) -> pb.InterpolateResponse | Chunks:
        """Decodes a path from one image or latent to another."""
        model = self.selection.find(request, call)
        wanted, on_arc = format_of(request, model.manifest), fields.on_arc(request)
        scaling, dtype = scaling_of(request.scaled, model.manifest), latent_dtype_of(request)
        if request.HasField("latents"):
            size = self.inputs.sizes(model).of_latents(tuple(request.latents.shape), "latents")
        elif request.HasField("images"):
            size = await self.inputs.size(model, request.images, "images", call)
        else:
            raise InvalidArgument("latents", "no ends", "two latents, or two images")
        steps = whole("steps", request.steps, 2, self.inputs.sizes(model).max_rows_of(size))
        of_ends, of_steps = labels.of_ends(request, model.manifest)
        call.rows += steps
        async with self.engine.admitted(call, model, steps, size):
            if request.HasField("latents"):
                ends = await self.inputs.latents(
                    model, request.latents, "latents", size, call, scaling=scaling, count=2
                )
            else:
                ends = await self.inputs.means(
                    model, request.images, "images", 2, size, call, of_ends
                )
            path = await self.engine.interpolate(
                call,
                model,
                ends,
                steps,
                on_arc=on_arc,
                as_uint8=wanted.format.as_uint8,
                labels=of_steps,
            )
            reply = pb.InterpolateResponse()
            if request.return_latents:
                await put_latents(self.engine, reply.latents, path.latents, dtype, call, scaling)
            return await with_images(
                self.engine, signed(reply, model, call), path.images, wanted, call
            )

    async def traverse(
        self, request: pb.TraverseRequest, call: Call
    ) -> pb.TraverseResponse | Chunks:
        """Decodes a line or a grid along latent axes."""
        model = self.selection.find(request, call)
        wanted, dtype = format_of(request, model.manifest), latent_dtype_of(request)
        axes = fields.axes_of(request, model.manifest.latent_dim)
        size = self.inputs.sizes(model).golden  # the axes index a latent of this size
        limit = self.inputs.sizes(model).max_rows
        steps = whole("steps", request.steps, 2, limit if len(axes) == 1 else int(limit**0.5))
        reach = fields.reach_of(request)
        count = steps ** len(axes)
        of_middle, of_points = labels.of_middle(request, model.manifest, count)
        call.rows += count
        async with self.engine.admitted(call, model, count, size):
            if request.HasField("latent"):
                start = (
                    await self.inputs.latents(model, request.latent, "latent", size, call, count=1)
                )[0]
            elif request.HasField("image"):
                encoded = request.image.encoded
                if encoded.resize and size and not encoded.HasField("height"):
                    encoded.height, encoded.width = size  # not the nearest size
                given = await self.inputs.size(model, request.image, "image", call)
                if given != size:
                    raise InvalidArgument(
                        "image",
                        f"{given[0]}x{given[1]}",
                        f"{size[0]}x{size[1]} (height x width), the size of ModelInfo.image_shape",
                    )
                (start,) = await self.inputs.means(
                    model, request.image, "image", 1, size, call, of_middle
                )
            else:
                start = model.prior_mean.reshape(model.manifest.latent_shape)
            grid, rows, columns = traverse(start, model.prior_std, axes, steps, reach)
            pixels = await self.engine.decode(
                call, model, grid, as_uint8=wanted.format.as_uint8, labels=of_points
            )
            reply = pb.TraverseResponse(rows=rows, columns=columns)
            if request.return_latents:
                await put_latents(self.engine, reply.latents, grid, dtype, call)
            return await with_images(self.engine, signed(reply, model, call), pixels, wanted, call)

    async def score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        """Computes how likely images are under a model."""
        model = self.selection.find(request, call)

        async def write(scored: Scored, draw: Draw | None) -> pb.ScoreResponse:
            reply = pb.ScoreResponse(seed=None if draw is None else draw.seed)
            put_scores(reply.reconstruction, scored.reconstruction)
            put_scores(reply.kl, scored.kl)
            put_scores(reply.elbo, scored.elbo)
            if scored.nll is not None:
                put_scores(reply.nll, scored.nll)
            if scored.percentile is not None:
                put_scores(reply.percentile, scored.percentile)
            return signed(reply, model, call)

        return await self.operations.score(model, request, call, write)

    def encode_stream(
        self, requests: AsyncIterator[pb.EncodeStreamRequest], call: Call
    ) -> AsyncGenerator[pb.EncodeStreamResponse, None]:
        """Answers each message of a stream as an Encode request."""
        find = self.selection.pinned(call)

        async def answer(message: pb.EncodeStreamRequest, part: Call) -> pb.EncodeStreamResponse:
            request = message.request
            reply = await self._encode(find(request), request, part)
            return pb.EncodeStreamResponse(response=reply)

        return in_order(requests, _parts(call, answer), memory=self.engine.admission)

    def decode_stream(
        self, requests: AsyncIterator[pb.DecodeStreamRequest], call: Call
    ) -> AsyncGenerator[pb.DecodeStreamResponse | Chunks, None]:
        """Answers each message of a stream as a Decode request."""
        find = self.selection.pinned(call)

        async def answer(
            message: pb.DecodeStreamRequest, part: Call
        ) -> pb.DecodeStreamResponse | Chunks:
            request = message.request
            reply = await self._decode(find(request), request, part)
            return in_stream(pb.DecodeStreamResponse, reply)

        return in_order(requests, _parts(call, answer), memory=self.engine.admission)

    def sample_stream(
        self, request: pb.SampleStreamRequest, call: Call
    ) -> AsyncGenerator[pb.SampleStreamResponse | Chunks, None]:
        """Answers a Sample request of any size in chunks of images."""
        model, whole_request = self.selection.find(request.request, call), request.request
        image_size = fields.size_of(whole_request, self.inputs.sizes(model))
        limit = self.inputs.sizes(model).max_rows_of(image_size)
        size = whole("chunk_rows", request.chunk_rows, 0, limit) or min(_CHUNK_ROWS, limit)
        count = whole("request.count", whole_request.count, 1, 2**63 - 1)
        draw = draw_of(whole_request, count)

        async def chunks() -> AsyncIterator[tuple[int, int]]:
            for start in range(0, count, size):
                yield start, min(size, count - start)

        async def answer(chunk: tuple[int, int], part: Call) -> pb.SampleStreamResponse | Chunks:
            start, rows = chunk
            piece = pb.SampleRequest()
            piece.CopyFrom(whole_request)
            piece.count = rows
            own = Draw(draw.seed, draw.offset + start)
            reply = await self._sample(model, piece, own, image_size, part)
            return in_stream(pb.SampleStreamResponse, reply)

        return in_order(chunks(), _parts(call, answer), memory=self.engine.admission)

    async def _encode(
        self, model: Model, request: pb.EncodeRequest, call: Call
    ) -> pb.EncodeResponse:
        scaling, dtype = scaling_of(request.scaled, model.manifest), latent_dtype_of(request)

        async def write(encoded: Encoded, draw: Draw | None) -> pb.EncodeResponse:
            reply = pb.EncodeResponse()
            for tensor, latents in (("mean", encoded.mean), ("z", encoded.z)):
                if latents is not None:
                    message = getattr(reply, tensor)
                    await put_latents(self.engine, message, latents, dtype, call, scaling)
            if encoded.log_var is not None:
                log_var = encoded.log_var
                if scaling is not None:
                    log_var = scaling.scaled_log_var(log_var)
                await put_latents(self.engine, reply.log_var, log_var, dtype, call)
            if draw is not None:
                reply.seed = draw.seed
            return signed(reply, model, call)

        return await self.operations.encode(model, request, call, write)

    async def _decode(
        self, model: Model, request: pb.DecodeRequest, call: Call
    ) -> pb.DecodeResponse | Chunks:
        async def write(pixels: Pixels, wanted: ImageOutput) -> pb.DecodeResponse | Chunks:
            reply = signed(pb.DecodeResponse(), model, call)
            return await with_images(self.engine, reply, pixels, wanted, call)

        return await self.operations.decode(model, request, call, write)

    async def _sample(
        self, model: Model, request: pb.SampleRequest, draw: Draw, size: ImageSize, call: Call
    ) -> pb.SampleResponse | Chunks:
        dtype = latent_dtype_of(request)

        async def write(sampled: Decoded, wanted: ImageOutput) -> pb.SampleResponse | Chunks:
            reply = pb.SampleResponse(seed=draw.seed, offset=draw.offset)
            if sampled.labels is not None:
                reply.labels.extend(sampled.labels.tolist())
            if request.return_latents:
                await put_latents(self.engine, reply.latents, sampled.latents, dtype, call)
            return await with_images(
                self.engine, signed(reply, model, call), sampled.images, wanted, call
            )

        return await self.operations.sample(model, request, draw, size, call, write)


def _parts(
    call: Call, answer: Callable[[Request, Call], Awaitable[Reply]]
) -> Callable[[Request], Awaitable[Reply]]:
    """Wraps `answer` so that each message of a stream has a separate per-call context.

    Admission may refuse the first message; later ones wait for capacity (back-pressure).
    """

    async def part(request: Request) -> Reply:
        own = dataclasses.replace(call, arrived=time.monotonic(), rows=0, timing=Timing())
        call.patient = True
        reply = await answer(request, own)
        call.rows += own.rows
        call.timing.add(own.timing)
        return reply

    return part
