"""Operations of any length: chunked requests and replies, with back-pressure."""

import json
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any, Final

from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from latentserve.v1 import latent_service_pb2 as pb
from service.api.wire import Chunks
from service.dispatch.dispatcher import Dispatcher
from service.dispatch.rpc import Rpc
from service.engine.call import Call
from service.errors import InvalidArgument
from service.gateway import arrays, bodies, caching, replies
from service.gateway.calls import select
from service.gateway.exchange import Exchange, asked, request_parameters
from service.gateway.media import NDJSON, NPY, MediaType, choose
from service.gateway.operations import Operation
from service.gateway.parameters import fill
from service.gateway.receiving import Receiving
from service.gateway.replies import Wanted
from service.gateway.sending import Sending
from service.gateway.sources import Source, of_lines, of_rows

_REPLIES: Final = {
    "EncodeStream": pb.EncodeStreamResponse,
    "DecodeStream": pb.DecodeStreamResponse,
    "SampleStream": pb.SampleStreamResponse,
}


class Streams:
    """Answers requests by streaming calls.

    Args:
        rpcs: The methods of LatentService, by name.
        dispatcher: Runs the calls.
        receiving: Receives bodies.
        sending: Counts replies that wait to be read.
        max_bytes: Maximum bytes of a message.
        max_rows: Maximum rows of a request.
    """

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        dispatcher: Dispatcher,
        receiving: Receiving,
        sending: Sending,
        *,
        max_bytes: int,
        max_rows: int,
    ):
        self._rpcs = rpcs
        self._dispatcher = dispatcher
        self._receiving = receiving
        self._sending = sending
        self._max_bytes = max_bytes
        self._max_rows = max_rows

    async def operate(self, request: Request, operation: Operation) -> Response:
        """Answers a request; the first reply of its call decides about the status."""
        exchange, rpc = Exchange(request), self._rpcs[operation.rpc]

        async def work() -> Response:
            mine, rest = request_parameters(request, replies.PARAMETERS)
            chosen = choose(request.headers.get("accept", ""), [NDJSON, NPY])
            wanted = replies.wanted_of(operation, chosen, mine)
            media = MediaType.parse(request.headers.get("content-type", ""))
            if rpc.takes_stream:
                parts = self._receiving.parts(request)
                source = await self._parts(request, operation, rest, media, parts)
            else:
                body = await self._receiving.whole(request, rpc, exchange.call)
                if body:
                    bodies.refuse_other(media, operation)
                source = self._whole(request, operation, rest, media, body)
            return _Streamed(
                exchange, rpc, operation, wanted, source, self._dispatcher, self._sending
            )

        return await exchange.answered(work)

    async def _parts(
        self,
        request: Request,
        operation: Operation,
        parameters: list[tuple[str, str]],
        media: MediaType,
        parts: AsyncIterator[bytes],
    ) -> Source:
        """Requests of a streaming call, made of a body as it arrives."""

        def selected(message: Any) -> Message:
            select(message.request, request)
            return message  # type: ignore[no-any-return] # a message of the stream

        message_class = {
            "EncodeStream": pb.EncodeStreamRequest,
            "DecodeStream": pb.DecodeStreamRequest,
        }
        make = message_class[operation.rpc]
        if media.name == NPY:
            return await of_rows(make, selected, operation, parameters, parts, self._max_bytes)
        return of_lines(make, selected, operation, parameters, media, parts, self._max_rows)

    def _whole(
        self,
        request: Request,
        operation: Operation,
        parameters: list[tuple[str, str]],
        media: MediaType,
        body: bytes,
    ) -> Source:
        """The request of a SampleStream."""

        def read(raw: bytes) -> Message:
            message = pb.SampleStreamRequest()
            own = [pair for pair in parameters if pair[0] in ("chunk_rows", "chunkRows")]
            fill(message, own)
            rest = [pair for pair in parameters if pair not in own]
            bodies.read(message.request, operation, rest, media, raw, self._max_rows)
            select(message.request, request)
            return message

        return Source(body, read, rows=lambda message: int(message.request.count))


class _Streamed(Response):
    """The reply of a streaming call, written while the call runs."""

    def __init__(
        self,
        exchange: Exchange,
        rpc: Rpc,
        operation: Operation,
        wanted: Wanted,
        source: Source,
        dispatcher: Dispatcher,
        sending: Sending,
    ):
        super().__init__()
        self._exchange = exchange
        self._rpc = rpc
        self._operation = operation
        self._wanted = wanted
        self._source = source
        self._dispatcher = dispatcher
        self._sending = sending
        self._rows = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Runs the call and sends its replies as they come."""
        exchange, begun = self._exchange, False
        pieces = self._sending.pieces(exchange.connection.abort)

        async def write(chunks: Chunks) -> None:
            nonlocal begun
            if not begun:
                begun = True
                await send(self._start())
            await pieces.send(send, b"".join(chunks), last=False)

        async def run() -> None:
            rpc = asked(self._rpc, self._source.read, self._answer)
            await self._dispatcher.stream(rpc, self._source.raw, exchange.call, write)

        try:
            error = await exchange.failure_of(run)
            if error is None:
                if not begun:
                    await send(self._start())
                await pieces.send(send, b"", last=True)
            elif not begun:
                await exchange.failed(error)(scope, receive, send)
            else:
                fields = exchange.broke(error)
                if self._wanted.media == NDJSON:
                    line = json.dumps({"error": fields}).encode() + b"\n"
                    await pieces.send(send, line, last=True)
                else:
                    # Without its last chunk, so that nobody takes it for whole.
                    exchange.connection.abort()
        finally:
            pieces.close()

    def _start(self) -> dict[str, Any]:
        headers = [
            (b"content-type", self._wanted.media.encode()),
            (b"cache-control", caching.NO_STORE.encode()),
            (b"x-request-id", self._exchange.call.request_id.encode()),
        ]
        return {"type": "http.response.start", "status": HTTPStatus.OK, "headers": headers}

    async def _answer(self, requests: Any, call: Call) -> AsyncIterator[Chunks]:
        """The replies of the call as lines, or as the head and the rows of an npy file."""
        make = _REPLIES[self._rpc.name]
        total = None if self._wanted.media == NDJSON else self._total(requests)
        async for reply in self._rpc.answer(requests, call):
            message: Any = make.FromString(b"".join(reply)) if isinstance(reply, tuple) else reply
            if self._wanted.media == NDJSON:
                lists = self._wanted.tensors == "lists"
                yield (replies.to_json(message.response, lists), b"\n")
            else:
                yield self._npy(message.response, total)

    def _total(self, requests: Any) -> int:
        """Rows of the whole reply, which the head of an npy file states."""
        if self._source.rows is None:
            raise InvalidArgument("accept", NPY, f"{NDJSON}: lines do not say how many rows come")
        return self._source.rows(requests)

    def _npy(self, response: Message, total: int | None) -> Chunks:
        found = replies.arrays_of(response, self._operation)
        name = self._wanted.output or self._operation.arrays[0]
        if name not in found:
            raise InvalidArgument("output", name, f"one of {', '.join(found)}")
        array = found[name]
        content = array.tobytes()
        first, self._rows = not self._rows, self._rows + len(array)
        if not first:
            return (content,)
        return (arrays.npy_head(array.dtype, (total or 0, *array.shape[1:])), content)
