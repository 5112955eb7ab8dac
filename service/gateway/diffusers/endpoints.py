"""Answers the requests of `remote_decode` and `remote_encode`."""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.codec import Pixels
from service.api.selection import Selection
from service.api.wire import Chunks
from service.dispatch.rpc import Rpc
from service.engine.call import Call
from service.engine.engine import Engine
from service.errors import InvalidArgument
from service.gateway.arrays import array_of, put_array
from service.gateway.calls import select
from service.gateway.diffusers import parameters
from service.gateway.diffusers.images import in_colour, to_signed, to_unit
from service.gateway.diffusers.latents import Factors, unpacked, unscaled
from service.gateway.diffusers.parameters import IMAGE_DTYPES, LATENT_DTYPES
from service.gateway.diffusers.query import NAMES, Query, put_body
from service.gateway.errors import WrongMedia
from service.gateway.exchange import Exchange, asked
from service.gateway.media import PICTURES, MediaType
from service.gateway.parameters import fill
from service.gateway.receiving import Receiving
from service.gateway.unary import UnaryCalls, describe, message_of
from service.models.model import Model

T = TypeVar("T")

#: Media type of a tensor: its elements in C order, little-endian.
TENSOR: Final = "tensor/binary"
_TENSORS: Final = (TENSOR, "application/octet-stream")
#: Media types of what may be decoded, and encoded.
DECODED: Final = _TENSORS
ENCODED: Final = (*_TENSORS, *PICTURES)
_PICTURES: Final = {"jpg": pb.IMAGE_FORMAT_JPEG, "png": pb.IMAGE_FORMAT_PNG}
_MEDIA: Final = {pb.IMAGE_FORMAT_JPEG: "image/jpeg", pb.IMAGE_FORMAT_PNG: "image/png"}
_FLOAT_FORMATS: Final = {
    tensor_pb2.DATA_TYPE_FLOAT32: pb.IMAGE_FORMAT_FLOAT32,
    tensor_pb2.DATA_TYPE_FLOAT16: pb.IMAGE_FORMAT_FLOAT16,
    tensor_pb2.DATA_TYPE_BFLOAT16: pb.IMAGE_FORMAT_BFLOAT16,
}
# Fields of requests by which calls name what is wrong, and what has that name here.
_OWN_NAMES: Final = {
    "latents.shape": "shape",
    "latents.dtype": "dtype",
    "latents.data": "body",
    "images.tensor.shape": "shape",
    "images.tensor.dtype": "dtype",
    "images.tensor.data": "body",
    "images.encoded.files": "body",
    "images.encoded.files[0]": "body",
    "images.encoded.height": "height",
    "images.encoded.resize": "resize",
}
# Up to this size, converting an array takes less time than waking a thread to convert it.
_INLINE_BYTES: Final = 2**20


@dataclass(frozen=True)
class _Decoding:
    """How a request to decode is answered.

    Attributes:
        factors: How the latents are scaled.
        size: Height and width of the images of packed latents.
        dtype: Dtype of the reply if it is of floats.
        picture: Whether the reply is a picture file.
        bytewise: Whether it is of uint8.
        signed: Whether it is in [-1, 1], and not clipped.
    """

    factors: Factors
    size: tuple[int | None, int | None]
    dtype: tensor_pb2.DataType
    picture: bool
    bytewise: bool
    signed: bool


class RemoteVae:
    """Answers what `remote_decode` and `remote_encode` of diffusers send.

    Args:
        rpcs: The methods of LatentService, by name.
        engine: Has the threads in which arrays are converted.
        selection: Finds the model of a request.
        unary: Runs the calls.
        receiving: Receives bodies.
    """

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        engine: Engine,
        selection: Selection,
        unary: UnaryCalls,
        receiving: Receiving,
    ):
        self._rpcs = rpcs
        self._engine = engine
        self._selection = selection
        self._receiving = receiving
        self._unary = unary

    async def decode(self, request: Request) -> Response:
        """Answers a request to decode latents."""
        rpc = self._rpcs["Decode"]
        headers: dict[str, str] = {}
        asked_for: _Decoding

        def read(raw: bytes) -> Message:
            nonlocal asked_for
            query = Query(
                request.query_params.multi_items(), parameters.DECODE, parameters.DECODE_FIELDS
            )
            message = pb.DecodeRequest()
            select(message, request)
            put_body(message.latents, query, raw, parameters.LATENT_DTYPE, LATENT_DTYPES)
            fill(message, query.pairs(parameters.DECODE_FIELDS))
            asked_for = _read_decoding(message, query, request.headers.get("accept", ""))
            return message

        async def answer(message: Any, call: Call) -> Chunks:
            model = self._selection.fixed(message, call)
            with _own_names():
                await self._prepare(message, asked_for, model, call)
                reply = message_of(rpc, await rpc.answer(message, call))
            describe(reply, headers)
            if asked_for.picture:
                headers["Content-Type"] = _MEDIA[message.format]
                return (reply.images.encoded.files[0],)
            tensor = reply.images.tensor
            return await self._in_thread(
                tensor.ByteSize(), lambda: _written(_output(tensor, asked_for), headers), call
            )

        return await self._answered(request, rpc, DECODED, read, answer, headers)

    async def encode(self, request: Request) -> Response:
        """Answers a request to encode images: a tensor, or a picture file."""
        rpc = self._rpcs["Encode"]
        headers: dict[str, str] = {}
        factors: Factors
        dtype: tensor_pb2.DataType

        def read(raw: bytes) -> Message:
            nonlocal factors, dtype
            given = request.query_params
            picture = "shape" not in given
            fields = parameters.ENCODE_FIELDS + (parameters.PICTURE_FIELDS if picture else ())
            query = Query(given.multi_items(), parameters.ENCODE, fields)
            message = pb.EncodeRequest()
            select(message, request)
            if picture:
                message.images.encoded.files.append(raw)
                fill(message.images.encoded, query.pairs(parameters.PICTURE_FIELDS))
                # Of the reply: a picture has none of its own.
                dtype = LATENT_DTYPES[query.get(parameters.REPLY_DTYPE) or "float32"]
            else:
                put_body(message.images.tensor, query, raw, parameters.IMAGE_DTYPE, IMAGE_DTYPES)
                dtype = message.images.tensor.dtype
                if dtype == tensor_pb2.DATA_TYPE_UINT8:
                    dtype = tensor_pb2.DATA_TYPE_FLOAT32
            fill(message, query.pairs(parameters.ENCODE_FIELDS))
            factors = Factors.of(query)
            return message

        async def answer(message: Any, call: Call) -> Chunks:
            model = self._selection.fixed(message, call)
            scaling = factors.scaling(model.manifest)
            images = message.images
            with _own_names():
                if images.HasField("tensor") and images.tensor.dtype != tensor_pb2.DATA_TYPE_UINT8:
                    tensor = images.tensor
                    size = tensor.ByteSize()
                    pixels = await self._in_thread(size, lambda: to_unit(array_of(tensor)), call)
                    tensor.Clear()
                    put_array(tensor, pixels)
                reply = message_of(rpc, await rpc.answer(message, call))
            describe(reply, headers)
            encoded = reply.z if message.draw else reply.mean

            def write() -> Chunks:
                latents = array_of(encoded)
                if scaling is not None:
                    latents = scaling.scaled(latents)
                return _written((latents, dtype), headers)

            return await self._in_thread(encoded.ByteSize(), write, call)

        # diffusers does not say what an image is that it sends.
        return await self._answered(request, rpc, ("", *ENCODED), read, answer, headers)

    async def _answered(
        self,
        request: Request,
        rpc: Rpc,
        media: tuple[str, ...],
        read: Callable[[bytes], Message],
        answer: Callable[[Any, Call], Any],
        headers: dict[str, str],
    ) -> Response:
        exchange = Exchange(request)

        async def work() -> Response:
            given = MediaType.parse(request.headers.get("content-type", "")).name
            if given not in media:
                raise WrongMedia(given, ", ".join(filter(None, media)))
            body = await self._receiving.whole(request, rpc, exchange.call)
            return await self._unary.run(exchange, asked(rpc, read, answer), body, TENSOR, headers)

        return await exchange.answered(work)

    async def _prepare(
        self, message: pb.DecodeRequest, decoding: _Decoding, model: Model, call: Call
    ) -> None:
        """Replaces latents that are packed or scaled by those that the graph takes."""
        tensor, manifest = message.latents, model.manifest
        scaling, packed = decoding.factors.scaling(manifest), len(tensor.shape) == 3
        if scaling is None and not packed:
            return

        def prepare() -> Any:
            latents = array_of(tensor)
            if packed:
                latents = unpacked(latents, *decoding.size, manifest)
            return latents if scaling is None else unscaled(latents, scaling, manifest)

        latents = await self._in_thread(tensor.ByteSize(), prepare, call)
        tensor.Clear()
        put_array(tensor, latents)

    async def _in_thread(self, size: int, work: Callable[[], T], call: Call) -> T:
        """Converts an array of `size` bytes, in a thread if it is large."""
        return work() if size <= _INLINE_BYTES else await self._engine.in_thread(work, call)


def _read_decoding(message: pb.DecodeRequest, query: Query, accept: str) -> _Decoding:
    """Reads how a request is answered, and makes its message ask for the images for that.

    Raises:
        InvalidArgument: A parameter is invalid, or several images are to be one picture.
    """
    output = query.get(parameters.OUTPUT_TYPE) or "pil"
    picture = _PICTURES[query.get(parameters.IMAGE_FORMAT) or "jpg"]
    partly = query.get(parameters.PARTIAL_POSTPROCESS)
    dtype = message.latents.dtype
    # With a processor, remote_decode wants the pixels of `pil` as a tensor, and says so there.
    wants_tensor = any(MediaType.parse(part).name == TENSOR for part in accept.split(","))
    decoding = _Decoding(
        Factors.of(query),
        (query.get(parameters.HEIGHT), query.get(parameters.WIDTH)),
        dtype,
        picture=output == "pil" and not wants_tensor,
        bytewise=output == "pt" and bool(partly),
        signed=output == "pt" and not partly,
    )
    if decoding.picture:
        rows = message.latents.shape[0]
        if rows > 1:
            wanted = "1 row for a picture (or output_type=pt)"
            raise InvalidArgument("shape", f"{rows} rows", wanted)
        message.format = picture
    elif message.HasField("quality"):
        raise InvalidArgument("quality", message.quality, "none, since the reply is no picture")
    elif decoding.bytewise:
        message.format = pb.IMAGE_FORMAT_UINT8
    elif decoding.signed:
        # As float32: it is rounded to `dtype` once it is in [-1, 1].
        message.unclipped = True
    else:
        message.format = _FLOAT_FORMATS[dtype]
    return decoding


def _output(tensor: tensor_pb2.Tensor, decoding: _Decoding) -> tuple[Pixels, tensor_pb2.DataType]:
    """The images of a reply as diffusers wants them, and their dtype."""
    images = array_of(tensor)
    if decoding.bytewise:
        # Pillow makes pictures of [H, W, 3], and none of [H, W, 1].
        return in_colour(images).transpose(0, 2, 3, 1), tensor_pb2.DATA_TYPE_UINT8
    if decoding.signed:
        return to_signed(images), decoding.dtype
    return in_colour(images), decoding.dtype


def _written(array: tuple[Pixels, tensor_pb2.DataType], headers: dict[str, str]) -> Chunks:
    """The bytes of an array in a dtype; its shape and dtype are added to the headers."""
    tensor, content = codec.bare_tensor(*array)
    headers["Shape"] = json.dumps(list(tensor.shape))
    headers["Dtype"] = NAMES[tensor.dtype]
    return (content,)


@contextmanager
def _own_names() -> Iterator[None]:
    """Makes errors of a call name the parameters that they are about."""
    try:
        yield
    except InvalidArgument as error:
        if error.field in _OWN_NAMES:
            error.field = _OWN_NAMES[error.field]
            error.args = (f"{error.field}: {error.description}",)
        raise
