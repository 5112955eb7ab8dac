"""Carries calls from grpcio to a servicer and errors back, and knows how many there are."""

import asyncio
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any

import grpc
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from service.call import Call
from service.errors import DeadlineExceeded, InvalidArgument, NotReady, ServiceError
from service.logs import REQUEST_ID, clean_request_id, new_request_id
from service.telemetry import Telemetry
from service.transport.errors import abort

_log = logging.getLogger(__name__)

Context = grpc.aio.ServicerContext[Any, Any]


class Calls:
    """All calls to our own services.

    Args:
        authenticate: Raises Unauthenticated where a call's `authorization` is not right.
        telemetry: Told of every call.

    Attributes:
        draining: Whether new calls are refused.
    """

    def __init__(self, authenticate: Callable[[str | None], None], telemetry: Telemetry):
        self.draining = False
        self._authenticate = authenticate
        self._telemetry = telemetry
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()

    async def finished(self) -> None:
        """Waits until no call is running."""
        await self._idle.wait()

    def handlers(self, service: ServiceDescriptor, servicer: Any) -> Any:
        """Returns grpcio's handlers of a service: bytes in, messages out.

        Args:
            service: The service.
            servicer: Has a method for each RPC, by its name in snake case.
        """
        return grpc.method_handlers_generic_handler(
            service.full_name,
            {method.name: self._handler(method, servicer) for method in service.methods},
        )

    def _handler(self, method: MethodDescriptor, servicer: Any) -> Any:
        answer = getattr(servicer, re.sub(r"(?<!^)(?=[A-Z])", "_", method.name).lower())
        request_class = GetMessageClass(method.input_type)
        serialize = GetMessageClass(method.output_type).SerializeToString
        name = method.name

        async def unary(raw: bytes, context: Context) -> Any:
            async with self._answering(name, context) as call:
                return await answer(_parsed(request_class, raw), call)

        async def server_stream(raw: bytes, context: Context) -> None:
            async with self._answering(name, context) as call:
                await _write(answer(_parsed(request_class, raw), call), context)

        async def both_streams(_requests: Any, context: Context) -> None:
            async with self._answering(name, context) as call:
                await _write(answer(_read(request_class, context), call), context)

        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(both_streams, None, serialize)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(server_stream, None, serialize)
        return grpc.unary_unary_rpc_method_handler(unary, None, serialize)

    @asynccontextmanager
    async def _answering(self, rpc: str, context: Context) -> AsyncIterator[Call]:
        """Entered while a call is answered; whatever goes wrong becomes gRPC's error."""
        self._running += 1
        self._idle.clear()
        began = time.monotonic()
        call = _call(context, began)
        token = REQUEST_ID.set(call.request_id)
        code = "OK"
        span = self._telemetry.span(rpc, call)
        try:
            with span:
                try:
                    self._authenticate(call.metadata.get("authorization"))
                    if self.draining:
                        raise NotReady("the server is draining; another one will answer")
                    yield call
                except ServiceError as error:
                    code = error.status.name
                    span.failed(code, expected=True)
                    if not isinstance(error, DeadlineExceeded):  # those are counted as dropped
                        self._telemetry.refused(error)
                    await abort(context, error)
                except asyncio.CancelledError:
                    late = time.monotonic() >= call.deadline
                    code = "DEADLINE_EXCEEDED" if late else "CANCELLED"
                    span.failed(code, expected=True)
                    raise
                except Exception:  # noqa: BLE001 - a bug in one call must not end the others
                    code = "INTERNAL"
                    span.failed(code, expected=False)
                    # Its text may hold anything: it stays in the log, under the id the
                    # caller gets.
                    _log.exception("request %s to %s failed", call.request_id, rpc)
                    internal = ServiceError(f"internal error, request id {call.request_id}")
                    await abort(context, internal, {"request_id": call.request_id})
                finally:
                    span.told(call)
        finally:
            self._telemetry.request(rpc, call.model, code, time.monotonic() - began)
            REQUEST_ID.reset(token)
            self._running -= 1
            if self._running == 0:
                self._idle.set()


def _call(context: Context, now: float) -> Call:
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    left = context.time_remaining()
    return Call(
        deadline=math.inf if left is None else now + left,
        metadata=metadata,
        peer=context.peer(),
        request_id=clean_request_id(metadata.get("x-request-id", "")) or new_request_id(),
        arrived=now,
    )


def _parsed(request_class: Any, raw: bytes) -> Any:
    try:
        return request_class.FromString(raw)
    except DecodeError:
        name = request_class.DESCRIPTOR.name
        raise InvalidArgument("request", f"{len(raw)} bytes", f"the message {name}") from None


async def _read(request_class: Any, context: Context) -> AsyncIterator[Any]:
    while (raw := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        yield _parsed(request_class, raw)


async def _write(replies: AsyncGenerator[Any, None], context: Context) -> None:
    """Sends replies as fast as the caller takes them."""
    async with aclosing(replies) as stream:
        async for reply in stream:
            await context.write(reply)
