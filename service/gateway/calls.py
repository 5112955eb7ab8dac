"""Operations with one request and one reply."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, Final

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response

from latentserve.v1 import latent_service_pb2 as pb
from service.api.selection import Selection
from service.api.wire import Chunks
from service.dispatch.rpc import Rpc
from service.engine.call import Call
from service.engine.engine import Engine
from service.errors import InvalidArgument, ModelNotFound
from service.gateway import bodies, caching, replies
from service.gateway.exchange import Exchange, asked, request_parameters
from service.gateway.media import JSON, MULTIPART, PICTURES, MediaType, choose
from service.gateway.operations import Operation
from service.gateway.receiving import Receiving
from service.gateway.replies import Wanted
from service.gateway.unary import UnaryCalls, describe, message_of

# Replies up to this size are written on the event loop, larger ones in a thread. A sheet is always
# written in a thread, since it is compressed.
_INLINE_BYTES: Final = 16 * 1024


class Calls:
    """Answers requests by calls of one request and one reply.

    Args:
        rpcs: The methods of LatentService, by name.
        engine: Has the threads in which replies are written.
        selection: Finds the model of a request.
        unary: Runs the calls.
        receiving: Receives bodies.
        private: Whether callers need a token.
        max_rows: Maximum rows of a request.
    """

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        engine: Engine,
        selection: Selection,
        unary: UnaryCalls,
        receiving: Receiving,
        *,
        private: bool,
        max_rows: int,
    ):
        self._rpcs = rpcs
        self._engine = engine
        self._selection = selection
        self._receiving = receiving
        self._unary = unary
        self._private = private
        self._max_rows = max_rows

    async def describe(self, request: Request, name: str) -> Response:
        """Answers a GET without body: a server, models, a latent map."""
        exchange, rpc = Exchange(request), self._rpcs[name]

        async def work() -> Response:
            mine, rest = request_parameters(request, ("tensors",))
            lists = replies.wanted_of(_DESCRIPTION, JSON, mine).tensors == "lists"
            choose(request.headers.get("accept", ""), [JSON])

            def read(_raw: bytes) -> Message:
                message = rpc.request()
                select(message, request)
                bodies.read(message, _DESCRIPTION, rest, MediaType("", {}), b"", self._max_rows)
                return message

            async def answer(message: Message, call: Call) -> Chunks:
                reply = await rpc.answer(message, call)
                # Descriptions, and maps of 2,000 points, are of bounded size.
                return (replies.to_json(reply, lists=lists and name != "GetLatentMap"),)

            return await self._unary.run(exchange, asked(rpc, read, answer), b"", JSON, {})

        return await exchange.answered(work)

    async def operate(self, request: Request, operation: Operation) -> Response:
        """Answers a request to a model."""
        exchange, rpc = Exchange(request), self._rpcs[operation.rpc]

        async def work() -> Response:
            media = MediaType.parse(request.headers.get("content-type", ""))
            body = await self._receiving.whole(request, rpc, exchange.call)
            if body:
                bodies.refuse_other(media, operation)
            offered = replies.offers(operation, media.name, body=bool(body))
            chosen = choose(request.headers.get("accept", ""), offered)
            mine, rest = request_parameters(request, replies.PARAMETERS)
            wanted = replies.wanted_of(operation, chosen, mine)
            return await self._operate(request, operation, exchange, rest, media, body, wanted)

        return await exchange.answered(work)

    async def _operate(
        self,
        request: Request,
        operation: Operation,
        exchange: Exchange,
        parameters: list[tuple[str, str]],
        media: MediaType,
        body: bytes,
        wanted: Wanted,
    ) -> Response:
        rpc = self._rpcs[operation.rpc]
        headers = {"Cache-Control": caching.NO_STORE, "Vary": "Accept"}
        written = wanted
        known = False

        def read(raw: bytes) -> Message:
            nonlocal written
            message = rpc.request()
            with _names_of(operation):
                bodies.read(message, operation, parameters, media, raw, self._max_rows)
            select(message, request)
            if operation.name == "restyle":
                _to_each(message, self._max_rows)
            written = _for_sheet(message, wanted)
            return message

        async def answer(message: Any, call: Call) -> Chunks:
            nonlocal known, written
            if request.method != "POST" and _is_pure(message):
                named = bool(message.model.version)
                model = self._selection.fixed(message, call)
                tag = headers["ETag"] = caching.etag(model, message, written)
                headers["Cache-Control"] = caching.cache_control(named=named, private=self._private)
                if caching.matches(request.headers.get("if-none-match", ""), tag):
                    known = True
                    return (b"",)
            columns = _columns(message)
            with _names_of(operation):
                reply = message_of(rpc, await rpc.answer(message, call))
            content, media_type = await self._written(reply, operation, written, columns, call)
            headers["Content-Type"] = media_type
            describe(reply, headers)
            return (content,)

        # Of all media these alone take much longer to read than to copy.
        engine = self._engine if media.name in (JSON, MULTIPART) else None
        made = asked(rpc, read, answer, engine)
        response = await self._unary.run(exchange, made, body, "", headers)
        if known:
            return Response(None, HTTPStatus.NOT_MODIFIED, headers)
        return response

    async def _written(
        self, reply: Message, operation: Operation, wanted: Wanted, columns: int, call: Call
    ) -> tuple[bytes, str]:
        def write() -> tuple[bytes, str]:
            return replies.written(reply, operation, wanted, columns)

        if wanted.media not in PICTURES and reply.ByteSize() <= _INLINE_BYTES:
            return write()
        return await self._engine.in_thread(write, call)


@contextmanager
def _names_of(operation: Operation) -> Iterator[None]:
    """Names fields in errors as the caller of an operation does."""
    try:
        yield
    except InvalidArgument as error:
        for name, field in operation.aliases.items():
            error.rename(field, name)
        raise


_MAX_VERSION: Final = 2**63 - 1
_DESCRIPTION: Final = Operation("", "", arrays=(), pictured=False)


def select(message: Any, request: Request) -> None:
    """Sets the model of a message to that of the path, if there is one.

    Raises:
        InvalidArgument: The body names a model as well.
        ModelNotFound: The version is above all that there can be.
    """
    if "model" not in request.path_params:
        return
    if message.HasField("model"):
        raise InvalidArgument("model", "a model in the body", "only the one of the path")
    name, version = request.path_params["model"], request.path_params.get("version", 0)
    if version > _MAX_VERSION:
        raise ModelNotFound(f"model.version: got {version}, wanted at most {_MAX_VERSION}")
    message.model.name, message.model.version = name, version


def _for_sheet(message: Any, wanted: Wanted) -> Wanted:
    """Makes a request ask for what its reply is written from; returns how it is written.

    Raises:
        InvalidArgument: The request asks for images in a format that npy or a sheet cannot have.
    """
    if "format" not in message.DESCRIPTOR.fields_by_name or wanted.media == JSON:
        return wanted
    if wanted.media not in PICTURES:
        if message.format in _FILES:
            raise InvalidArgument(
                "format", _name(message.format), "that of an array: float32, float16 or uint8"
            )
        return wanted
    if message.format not in (pb.IMAGE_FORMAT_UNSPECIFIED, _PICTURE_FORMATS[wanted.media]):
        raise InvalidArgument(
            "format", _name(message.format), f"none, or the one of {wanted.media}"
        )
    quality = wanted.quality
    if message.HasField("quality"):
        quality = message.quality
        if not 1 <= quality <= 100:
            raise InvalidArgument("quality", quality, "1 to 100")
        message.ClearField("quality")
    message.format = pb.IMAGE_FORMAT_UINT8
    return dataclasses.replace(wanted, quality=quality)


_PICTURE_FORMATS: Final = {
    "image/png": pb.IMAGE_FORMAT_PNG,
    "image/jpeg": pb.IMAGE_FORMAT_JPEG,
    "image/webp": pb.IMAGE_FORMAT_WEBP,
}
_FILES: Final = tuple(_PICTURE_FORMATS.values())


def _name(image_format: pb.ImageFormat) -> str:
    """A format as parameters name it; its number if it has no name, which JSON can give."""
    if image_format not in pb.ImageFormat.values():
        return str(image_format)
    return pb.ImageFormat.Name(image_format).removeprefix("IMAGE_FORMAT_").lower()


def _is_pure(message: Any) -> bool:
    """Whether a request without body has the same reply each time."""
    return "seed" not in message.DESCRIPTOR.fields_by_name or message.HasField("seed")


def _to_each(message: Any, max_rows: int) -> None:
    """Repeats the classes of a restyling for each of its images, as Reconstruct has them.

    Raises:
        InvalidArgument: There are none, or too many.
    """
    to, rows = list(message.target_labels), _rows(message.images)
    if not to:
        raise InvalidArgument("to", "none", "the classes to restyle to")
    if len(to) * rows > max_rows:
        raise InvalidArgument("to", f"{len(to)} for each of {rows} images", f"{max_rows} together")
    message.target_labels.extend(to * (rows - 1))


def _columns(message: Any) -> int:
    """Pictures in a row of a sheet: a grid's columns, an image's styles; 0 for a square one."""
    names = message.DESCRIPTOR.fields_by_name
    if "axes" in names:
        return int(message.steps)
    if "target_labels" in names and "steps" not in names and len(message.target_labels) > 1:
        rows = _rows(message.images)
        return len(message.target_labels) // rows if rows else 0
    return int(message.steps) if "steps" in names else 0


def _rows(images: Any) -> int:
    shape = images.tensor.shape
    return len(images.encoded.files) or (shape[0] if shape else 0)
