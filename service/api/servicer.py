"""The RPCs of LatentService, independent of the transport.

Each method takes a request, or an iterator of requests, and the per-call context. It returns the
reply, or an iterator of replies, or raises a ServiceError. A reply is a message or, if it has a
large payload, a serialised message in chunks.
"""

import dataclasses
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from typing import TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec, fields
from service.api.codec import Pixels
from service.api.describe import describe_model, describe_server
from service.api.fast_path import FastPath
from service.api.fields import draw_of, format_of, whole
from service.api.replies import in_stream, put_scores, signed, with_images
from service.api.streams import in_order
from service.api.wire import Chunks
from service.engine.call import Call, Timing
from service.engine.engine import Engine
from service.engine.paths import traverse
from service.engine.sampling import Draw
from service.errors import InvalidArgument
from service.models.limits import max_rows
from service.models.model import Model
from service.models.repository import Models
from service.settings import Settings

Request = TypeVar("Request")
Reply = TypeVar("Reply")

# Images in one reply of SampleStream, unless the request sets `chunk_rows`.
_CHUNK_ROWS = 256
# Up to this size, reading images takes less time than waking a thread to read them.
_READ_BYTES = 2**20


class Servicer:
    """The RPCs of LatentService.

    Args:
        engine: Runs the models.
        models: Returns the models that are being served.
        settings: The limits.
        fast_path: Whether Encode and Decode use cached plans (`FastPath`).
    """

    def __init__(
        self,
        engine: Engine,
        models: Callable[[], Models],
        settings: Settings,
        *,
        fast_path: bool = True,
    ):
        self._engine = engine
        self._models = models
        self._settings = settings
        self._max_pixels = settings.max_picture_pixels
        self._row_limits: WeakKeyDictionary[Model, int] = WeakKeyDictionary()
        self._fast_path = FastPath(engine, self._max_rows) if fast_path else None

    async def get_server_info(
        self, _request: pb.GetServerInfoRequest, _call: Call
    ) -> pb.GetServerInfoResponse:
        """Describes the server: versions, limits and models."""
        return describe_server(self._models(), self._settings)

    async def list_models(
        self, _request: pb.ListModelsRequest, _call: Call
    ) -> pb.ListModelsResponse:
        """Describes every model that is being served."""
        return pb.ListModelsResponse(
            models=[describe_model(model, self._settings) for model in self._models()]
        )

    async def get_model(self, request: pb.GetModelRequest, call: Call) -> pb.GetModelResponse:
        """Describes one model."""
        model = self._find(request.model, call)
        return pb.GetModelResponse(model=describe_model(model, self._settings))

    def encode(
        self, request: pb.EncodeRequest, call: Call
    ) -> Awaitable[pb.EncodeResponse | Chunks]:
        """Maps images to their posteriors."""
        model = self._find(request.model, call)
        fast = self._fast_path and self._fast_path.encode(model, request, call)
        return fast or self._encode(model, request, call)

    def decode(
        self, request: pb.DecodeRequest, call: Call
    ) -> Awaitable[pb.DecodeResponse | Chunks]:
        """Maps latents to images."""
        model = self._find(request.model, call)
        fast = self._fast_path and self._fast_path.decode(model, request, call)
        return fast or self._decode(model, request, call)

    async def sample(self, request: pb.SampleRequest, call: Call) -> pb.SampleResponse | Chunks:
        """Draws latents from the prior and decodes them."""
        model = self._find(request.model, call)
        rows = whole("count", request.count, 1, self._max_rows(model))
        return await self._sample(model, request, draw_of(request, rows), call)

    async def reconstruct(
        self, request: pb.ReconstructRequest, call: Call
    ) -> pb.ReconstructResponse | Chunks:
        """Encodes images and decodes them again."""
        model = self._find(request.model, call)
        wanted = format_of(request, model.manifest)
        async with self._engine.admitted(call, model, self._rows(request.images, model)):
            images = await self._read(model, request.images, "images", call)
            draw = draw_of(request, len(images)) if request.draw else None
            pixels = await self._engine.reconstruct(
                call, model, images, draw, as_uint8=wanted.as_uint8
            )
            reply = pb.ReconstructResponse(seed=None if draw is None else draw.seed)
            return await with_images(self._engine, signed(reply, model, call), pixels, wanted, call)

    async def interpolate(
        self, request: pb.InterpolateRequest, call: Call
    ) -> pb.InterpolateResponse | Chunks:
        """Decodes a path from one image or latent to another."""
        model = self._find(request.model, call)
        wanted, on_arc = format_of(request, model.manifest), fields.on_arc(request)
        steps = whole("steps", request.steps, 2, self._max_rows(model))
        call.rows += steps
        async with self._engine.admitted(call, model, steps):
            ends = await self._points(model, request, ("latents", "images"), 2, call)
            if ends is None:
                raise InvalidArgument("latents", "no ends", "two latents, or two images")
            path = await self._engine.interpolate(
                call, model, ends, steps, on_arc=on_arc, as_uint8=wanted.as_uint8
            )
            reply = pb.InterpolateResponse()
            if request.return_latents:
                codec.put_tensor(reply.latents, path.latents)
            return await with_images(
                self._engine, signed(reply, model, call), path.images, wanted, call
            )

    async def traverse(
        self, request: pb.TraverseRequest, call: Call
    ) -> pb.TraverseResponse | Chunks:
        """Decodes a line or a grid along latent axes."""
        model = self._find(request.model, call)
        wanted = format_of(request, model.manifest)
        axes = fields.axes_of(request, model.manifest.latent_dim)
        limit = self._max_rows(model)
        steps = whole("steps", request.steps, 2, limit if len(axes) == 1 else int(limit**0.5))
        reach = fields.reach_of(request)
        count = steps ** len(axes)
        call.rows += count
        async with self._engine.admitted(call, model, count):
            middle = await self._points(model, request, ("latent", "image"), 1, call)
            start = model.prior_mean if middle is None else middle[0]
            grid, rows, columns = traverse(start, model.prior_std, axes, steps, reach)
            pixels = await self._engine.decode(call, model, grid, as_uint8=wanted.as_uint8)
            reply = pb.TraverseResponse(rows=rows, columns=columns)
            if request.return_latents:
                codec.put_tensor(reply.latents, grid)
            return await with_images(self._engine, signed(reply, model, call), pixels, wanted, call)

    async def score(self, request: pb.ScoreRequest, call: Call) -> pb.ScoreResponse:
        """Computes how likely images are under a model."""
        model = self._find(request.model, call)
        draws = whole("draws", request.draws, 0, self._settings.max_score_draws)
        async with self._engine.admitted(call, model, self._rows(request.images, model)):
            images = await self._read(model, request.images, "images", call)
            draw = draw_of(request, len(images)) if draws else Draw(0)
            scored = await self._engine.score(call, model, images, draws, draw)
            reply = pb.ScoreResponse()
            put_scores(reply.reconstruction, scored.reconstruction)
            put_scores(reply.kl, scored.kl)
            put_scores(reply.elbo, scored.elbo)
            if scored.nll is not None:
                put_scores(reply.nll, scored.nll)
            if scored.percentile is not None:
                put_scores(reply.percentile, scored.percentile)
            if draws:
                reply.seed = draw.seed
            return signed(reply, model, call)

    def encode_stream(
        self, requests: AsyncIterator[pb.EncodeStreamRequest], call: Call
    ) -> AsyncGenerator[pb.EncodeStreamResponse, None]:
        """Answers each message of a stream as an Encode request."""
        find = self._pinned(call)

        async def answer(message: pb.EncodeStreamRequest, part: Call) -> pb.EncodeStreamResponse:
            request = message.request
            reply = await self._encode(find(request.model), request, part)
            return pb.EncodeStreamResponse(response=reply)

        return in_order(requests, _parts(call, answer), memory=self._engine.admission)

    def decode_stream(
        self, requests: AsyncIterator[pb.DecodeStreamRequest], call: Call
    ) -> AsyncGenerator[pb.DecodeStreamResponse | Chunks, None]:
        """Answers each message of a stream as a Decode request."""
        find = self._pinned(call)

        async def answer(
            message: pb.DecodeStreamRequest, part: Call
        ) -> pb.DecodeStreamResponse | Chunks:
            request = message.request
            reply = await self._decode(find(request.model), request, part)
            return in_stream(pb.DecodeStreamResponse, reply)

        return in_order(requests, _parts(call, answer), memory=self._engine.admission)

    def sample_stream(
        self, request: pb.SampleStreamRequest, call: Call
    ) -> AsyncGenerator[pb.SampleStreamResponse | Chunks, None]:
        """Answers a Sample request of any size in chunks of images."""
        model, whole_request = self._find(request.request.model, call), request.request
        limit = self._max_rows(model)
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
            reply = await self._sample(model, piece, Draw(draw.seed, draw.offset + start), part)
            return in_stream(pb.SampleStreamResponse, reply)

        return in_order(chunks(), _parts(call, answer), memory=self._engine.admission)

    async def _encode(
        self, model: Model, request: pb.EncodeRequest, call: Call
    ) -> pb.EncodeResponse:
        async with self._engine.admitted(call, model, self._rows(request.images, model)):
            images = await self._read(model, request.images, "images", call)
            draw = draw_of(request, len(images)) if request.draw else None
            encoded = await self._engine.encode(call, model, images, draw)
            reply = pb.EncodeResponse()
            codec.put_tensor(reply.mean, encoded.mean)
            if encoded.log_var is not None:
                codec.put_tensor(reply.log_var, encoded.log_var)
            if encoded.z is not None:
                codec.put_tensor(reply.z, encoded.z)
            if draw is not None:
                reply.seed = draw.seed
            return signed(reply, model, call)

    async def _decode(
        self, model: Model, request: pb.DecodeRequest, call: Call
    ) -> pb.DecodeResponse | Chunks:
        wanted = format_of(request, model.manifest)
        z = self._latents(model, request.latents, "latents")
        call.rows += len(z)
        async with self._engine.admitted(call, model, len(z)):
            pixels = await self._engine.decode(call, model, z, as_uint8=wanted.as_uint8)
            return await with_images(
                self._engine, signed(pb.DecodeResponse(), model, call), pixels, wanted, call
            )

    async def _sample(
        self, model: Model, request: pb.SampleRequest, draw: Draw, call: Call
    ) -> pb.SampleResponse | Chunks:
        wanted = format_of(request, model.manifest)
        label = fields.label_of(request, model.manifest)
        temperature = fields.temperature_of(request)
        truncation = fields.truncation_of(request)
        call.rows += request.count
        async with self._engine.admitted(call, model, request.count):
            sampled = await self._engine.sample(
                call,
                model,
                request.count,
                draw,
                label=label,
                temperature=temperature,
                truncation=truncation,
                as_uint8=wanted.as_uint8,
            )
            reply = pb.SampleResponse(seed=draw.seed, offset=draw.offset)
            if request.return_latents:
                codec.put_tensor(reply.latents, sampled.latents)
            return await with_images(
                self._engine, signed(reply, model, call), sampled.images, wanted, call
            )

    async def _points(
        self,
        model: Model,
        request: pb.InterpolateRequest | pb.TraverseRequest,
        fields: tuple[str, str],
        count: int,
        call: Call,
    ) -> NDArray[np.float32] | None:
        """Latents [count, D], or posterior means of the images; None if neither is given."""
        latents, images = fields
        if request.HasField(latents):
            points = self._latents(model, getattr(request, latents), latents)
            _exactly(len(points), count, f"{latents}.shape")
            return points
        if not request.HasField(images):
            return None
        pixels = await self._read(model, getattr(request, images), images, call)
        _exactly(len(pixels), count, images)
        call.rows -= len(pixels)  # a call's rows are those it decodes, not its input images
        return (await self._engine.encode(call, model, pixels)).mean

    def _find(self, selector: pb.ModelSelector, call: Call) -> Model:
        model = self._models().find(selector.name, selector.version)
        call.model, call.version = model.manifest.name, model.manifest.version
        return model

    def _pinned(self, call: Call) -> Callable[[pb.ModelSelector], Model]:
        """Returns a `_find` for one stream, which returns the same models even after a reload."""
        found: dict[tuple[str, int], Model] = {}

        def find(selector: pb.ModelSelector) -> Model:
            key = selector.name, selector.version
            if key not in found:
                found[key] = self._find(selector, call)
            return found[key]

        return find

    def _max_rows(self, model: Model) -> int:
        limit = self._row_limits.get(model)
        if limit is None:
            settings = self._settings
            limit = max_rows(model.manifest, settings.max_rows, settings.max_message_bytes)
            self._row_limits[model] = limit
        return limit

    def _rows(self, images: tensor_pb2.Images, model: Model) -> int:
        """Rows to reserve at admission, before `_read` validates their number."""
        return min(codec.rows_stated(images), self._max_rows(model))

    async def _read(
        self, model: Model, images: tensor_pb2.Images, field: str, call: Call
    ) -> Pixels:
        shape, limit = model.manifest.image_shape, self._max_rows(model)
        if not images.HasField("encoded") and images.ByteSize() <= _READ_BYTES:
            pixels = codec.read_images(images, field, shape, limit)
        else:
            pixels = await self._engine.in_thread(
                lambda: codec.read_images(images, field, shape, limit, self._max_pixels), call
            )
        call.rows += len(pixels)
        return pixels

    def _latents(self, model: Model, tensor: tensor_pb2.Tensor, field: str) -> NDArray[np.float32]:
        return codec.read_latents(tensor, field, model.manifest.latent_dim, self._max_rows(model))


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


def _exactly(got: int, wanted: int, field: str) -> None:
    if got != wanted:
        raise InvalidArgument(field, f"{got} rows", f"exactly {wanted}")
