"""Answers `/v2`: health, metadata, configuration, index, and inference."""

import json
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from http import HTTPStatus
from typing import Any, Final

from google.protobuf import json_format
from google.protobuf.message import Message
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.api.inference import inference_service_pb2 as pb
from service.api.wire import Chunks
from service.dispatch.rpc import Rpc
from service.engine.call import Call
from service.engine.engine import Engine
from service.errors import InvalidArgument
from service.gateway.exchange import Exchange, asked
from service.gateway.inference import messages
from service.gateway.json_bodies import parse_json
from service.gateway.media import JSON
from service.gateway.receiving import Receiving
from service.gateway.unary import UnaryCalls

# Replies up to this size are written on the event loop, larger ones in a thread.
_INLINE_BYTES: Final = 64 * 1024
#: Media type of JSON that elements follow.
BINARY: Final = "application/octet-stream"
# An extension that only HTTP has.
_BINARY_TENSORS: Final = "binary_tensor_data"
_MODEL: Final = "/v2/models/{name}"
_VERSION: Final = "/v2/models/{name}/versions/{version}"


class InferenceRoutes:
    """The Open Inference Protocol by HTTP.

    Args:
        rpcs: The methods of GRPCInferenceService, by name.
        engine: Has the threads in which large bodies are read and written.
        unary: Runs the calls.
        receiving: Receives bodies.
    """

    def __init__(
        self,
        rpcs: Mapping[str, Rpc],
        engine: Engine,
        unary: UnaryCalls,
        receiving: Receiving,
    ):
        self._rpcs = rpcs
        self._engine = engine
        self._receiving = receiving
        self._unary = unary

    def routes(self) -> list[Route]:
        """Returns the routes."""
        gets = {
            "/v2": partial(self._describe, "ServerMetadata", pb.ServerMetadataRequest),
            "/v2/health/live": partial(self._probe, "ServerLive", pb.ServerLiveRequest, "live"),
            "/v2/health/ready": partial(self._probe, "ServerReady", pb.ServerReadyRequest, "ready"),
        }
        for path in (_MODEL, _VERSION):
            gets[f"{path}/ready"] = partial(
                self._probe, "ModelReady", pb.ModelReadyRequest, "ready"
            )
            gets[f"{path}/config"] = partial(self._describe, "ModelConfig", pb.ModelConfigRequest)
            gets[path] = partial(self._describe, "ModelMetadata", pb.ModelMetadataRequest)
        found = [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
        found += [
            Route(f"{path}/infer", self.infer, methods=["POST"]) for path in (_MODEL, _VERSION)
        ]
        return [*found, Route("/v2/repository/index", self.index, methods=["POST"])]

    async def infer(self, request: Request) -> Response:
        """Runs a model."""
        rpc, headers = self._rpcs["ModelInfer"], {}
        every: bool
        named: Mapping[str, bool]

        def read(raw: bytes) -> Message:
            nonlocal every, named
            message = messages.read(
                raw,
                request.headers.get(messages.HEAD_LENGTH, ""),
                request.path_params["name"],
                request.path_params.get("version", ""),
            )
            every, named = messages.binary_outputs(message)
            return message

        async def answer(message: Message, call: Call) -> Chunks:
            reply = pb.ModelInferResponse.FromString(b"".join(await rpc.answer(message, call)))

            def write() -> tuple[bytes, int | None]:
                return messages.write(reply, every, named)

            small = reply.ByteSize() <= _INLINE_BYTES
            content, length = write() if small else await self._engine.in_thread(write, call)
            if length is not None:
                headers["Inference-Header-Content-Length"] = str(length)
                headers["Content-Type"] = BINARY
            return (content,)

        return await self._answered(request, rpc, read, answer, headers, self._engine)

    async def index(self, request: Request) -> Response:
        """Lists the models."""
        rpc = self._rpcs["RepositoryIndex"]

        def read(raw: bytes) -> Message:
            message = pb.RepositoryIndexRequest()
            given = parse_json(raw or b"{}", messages.MOST)
            try:
                json_format.ParseDict(given, message)
            except (json_format.ParseError, TypeError, AttributeError):
                raise InvalidArgument(
                    "body", raw[:100], 'an object such as {"ready": true}'
                ) from None
            return message

        async def answer(message: Message, call: Call) -> Chunks:
            reply = await rpc.answer(message, call)
            return (json.dumps([_object(one) for one in reply.models]).encode(),)

        return await self._answered(request, rpc, read, answer, {})

    async def _describe(self, name: str, make: Callable[[], Any], request: Request) -> Response:
        rpc = self._rpcs[name]

        async def answer(message: Message, call: Call) -> Chunks:
            reply = await rpc.answer(message, call)
            told = _object(reply.config if name == "ModelConfig" else reply)
            if name == "ServerMetadata":
                told["extensions"].append(_BINARY_TENSORS)
            return (json.dumps(told).encode(),)

        return await self._answered(request, rpc, partial(_named, make, request), answer, {})

    async def _probe(
        self, name: str, make: Callable[[], Any], field: str, request: Request
    ) -> Response:
        """Answers 200 if it is live or ready, else 503."""
        rpc, well = self._rpcs[name], False

        async def answer(message: Message, call: Call) -> Chunks:
            nonlocal well
            well = getattr(await rpc.answer(message, call), field)
            told = {"name": request.path_params["name"]} if request.path_params else {}
            return (json.dumps({**told, field: well}).encode(),)

        response = await self._answered(request, rpc, partial(_named, make, request), answer, {})
        if response.status_code == HTTPStatus.OK and not well:
            response.status_code = HTTPStatus.SERVICE_UNAVAILABLE
        return response

    async def _answered(
        self,
        request: Request,
        rpc: Rpc,
        read: Callable[[bytes], Message],
        answer: Callable[[Any, Call], Awaitable[Chunks]],
        headers: dict[str, str],
        engine: Engine | None = None,
    ) -> Response:
        exchange = Exchange(request, with_error=True)

        async def work() -> Response:
            body = await self._receiving.whole(request, rpc, exchange.call)
            made = asked(rpc, read, answer, engine)
            return await self._unary.run(exchange, made, body, JSON, headers)

        return await exchange.answered(work)


def _named(make: Callable[[], Any], request: Request, _raw: bytes) -> Message:
    """A request for the model of the path, if there is one."""
    message: Any = make()
    if request.path_params:
        message.name = request.path_params["name"]
        message.version = request.path_params.get("version", "")
    return message  # type: ignore[no-any-return] # made by `make`


def _object(message: Message) -> dict[str, Any]:
    """A message as the protocol has it: names as in the proto, integers as numbers."""
    told = json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    numbered: dict[str, Any] = _with_numbers(told)
    return numbered


def _with_numbers(value: Any) -> Any:
    """Turns the integers of shapes, which protobuf's mapping writes as text, into numbers."""
    if isinstance(value, dict):
        return {
            name: [int(size) for size in item]
            if name in ("shape", "dims")
            else int(item)
            if name == "max_queue_delay_microseconds"
            else _with_numbers(item)
            for name, item in value.items()
        }
    return [_with_numbers(item) for item in value] if isinstance(value, list) else value
