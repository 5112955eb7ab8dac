"""Call dispatch for all transports: authentication, count of calls, telemetry, error mapping."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import aclosing
from functools import partial
from typing import Final

from google.protobuf.message import Message

from service.api.answer import Answer
from service.api.wire import Chunks, serialized
from service.dispatch.rpc import Rpc
from service.dispatch.status import CallFailed, RpcStatus
from service.engine.call import Call
from service.engine.entry import QueueEntry
from service.errors import OutOfMemory, ServiceError
from service.observe.logs import CALLER, REQUEST_ID, clean_request_id, new_request_id, of_request
from service.observe.telemetry import NO_SPAN, Span, Telemetry

_log = logging.getLogger(__name__)

#: Checks the `authorization` of a call; returns the name of its token, or an empty string if the
#: token has no name or none is required. Raises Unauthenticated.
Authenticate = Callable[[str | None], str]
#: Cancellation message of a handler's task if the server, not the caller, has ended the call: it
#: ends as UNAVAILABLE.
ENDED: Final = "ended by the server"


class Dispatcher:
    """Runs the handlers of the calls that a transport receives.

    Args:
        authenticate: Checks a call's `authorization`, as `Authenticate` describes.
        telemetry: Records metrics and traces of the calls.
        transport: What the calls come by, for the metrics: `grpc` or `http`.
        traced: Whether calls have spans; those by HTTP are parts of requests that have them.
    """

    def __init__(
        self,
        authenticate: Authenticate,
        telemetry: Telemetry,
        transport: str = "grpc",
        *,
        traced: bool = True,
    ):
        self._transport = transport
        self._traced = traced and telemetry.traces
        # A span is entered and left in one context, which only a task has.
        self._plans = not telemetry.traces
        self._authenticate = authenticate
        self._telemetry = telemetry
        self._running = 0
        telemetry.watch_open(transport, calls=lambda: self._running)
        self._idle = asyncio.Event()
        self._idle.set()

    async def finished(self) -> None:
        """Waits until no call of a `counted` method is in flight."""
        await self._idle.wait()

    def precheck(self, rpc: Rpc, call: Call) -> None:
        """Authenticates a call whose request is still being received.

        Raises:
            CallFailed: The call is refused.
        """
        try:
            self._admit(rpc, call)
        except ServiceError as error:
            raise self._refused(rpc, call, error) from error

    def start(
        self,
        rpc: Rpc,
        raw: bytes,
        call: Call,
        send: Callable[[Chunks], None],
        done: Callable[[RpcStatus | None], None],
    ) -> QueueEntry | Message:
        """Starts a call like `unary`, but without a task, if there is a plan for its request.

        Args:
            rpc: The method; it has plans.
            raw: The serialised request.
            call: The per-call context.
            send: As for `unary`.
            done: Called later with the status of a call that failed, or None once its reply has
                been sent; not called if it was cancelled.

        Returns:
            What cancels the call if it is cancelled; or the parsed request, for `unary`.

        Raises:
            CallFailed: The call failed.
        """
        assert rpc.plan is not None
        try:
            self._admit(rpc, call)
            request = rpc.parse(raw)
            answer = rpc.plan(request, call) if self._plans else None
            if answer is None:
                return request
            entry = answer.start(partial(self._finish, rpc, call, answer, send, done))
        except Exception as error:
            raise self._refused(rpc, call, error) from error
        self._begin(rpc, call)
        return entry

    async def unary(
        self, rpc: Rpc, raw: bytes | Message, call: Call, send: Callable[[Chunks], None]
    ) -> None:
        """Runs a call with one request and one reply.

        Args:
            rpc: The method.
            raw: The request, serialised or parsed.
            call: The per-call context.
            send: Sends the serialised reply; an error that it raises is the call's.

        Raises:
            CallFailed: The call failed.
        """
        REQUEST_ID.set(call.request_id)  # context variable of the call's task
        span = self._begin(rpc, call)
        code = "OK"
        try:
            self._admit(rpc, call)
            answer = rpc.answer(rpc.parse(raw) if isinstance(raw, bytes) else raw, call)
            del raw  # frees memory: it is as large as the arrays parsed from it
            send(serialized(await answer))
        except BaseException as error:
            code, failure = self._failed(rpc, call, span, error)
            if failure is None:
                raise
            raise CallFailed(failure) from error
        finally:
            self._end(rpc, call, span, code)

    async def stream(
        self,
        rpc: Rpc,
        raw: bytes | AsyncIterator[bytes],
        call: Call,
        send: Callable[[Chunks], Awaitable[None]],
    ) -> None:
        """Runs a call with a stream of replies.

        Args:
            rpc: The method.
            raw: The serialised request, or an iterator of requests if the method takes a stream.
            call: The per-call context.
            send: Sends a serialised reply and waits while too much is queued; an error that it
                raises is the call's.

        Raises:
            CallFailed: The call failed, possibly after some replies.
        """
        REQUEST_ID.set(call.request_id)  # context variable of the call's task
        span = self._begin(rpc, call)
        code = "OK"
        try:
            self._admit(rpc, call)
            request = rpc.parse(raw) if isinstance(raw, bytes) else _parsed(rpc, raw)
            async with aclosing(rpc.answer(request, call)) as replies:
                async for reply in replies:
                    await send(serialized(reply))
        except BaseException as error:
            code, failure = self._failed(rpc, call, span, error)
            if failure is None:
                raise
            raise CallFailed(failure) from error
        finally:
            self._end(rpc, call, span, code)

    def _finish(
        self,
        rpc: Rpc,
        call: Call,
        answer: Answer,
        send: Callable[[Chunks], None],
        done: Callable[[RpcStatus | None], None],
        entry: QueueEntry,
    ) -> None:
        """Ends a call that `start` has begun, once its rows are computed or cancelled."""
        code, failure = "OK", None
        try:
            send(answer.finish(entry))
        except BaseException as error:
            with of_request(call.request_id, call.token):
                code, failure = self._failed(rpc, call, NO_SPAN, error)
            if failure is None:
                if isinstance(error, asyncio.CancelledError):
                    return
                raise
        finally:
            self._end(rpc, call, NO_SPAN, code)
        done(failure)

    def _refused(self, rpc: Rpc, call: Call, error: Exception) -> CallFailed:
        """Counts a call that failed before it began, and returns its error."""
        with of_request(call.request_id, call.token):
            span = self._begin(rpc, call)
            code, failure = self._failed(rpc, call, span, error)
            self._end(rpc, call, span, code)
        assert failure is not None  # only a cancellation has none
        return CallFailed(failure)

    def _begin(self, rpc: Rpc, call: Call) -> Span:
        if not rpc.counted:
            return NO_SPAN
        if not self._running:
            self._idle.clear()
        self._running += 1
        return self._telemetry.span(rpc.name, call) if self._traced else NO_SPAN

    def _admit(self, rpc: Rpc, call: Call) -> None:
        if not rpc.public:
            call.token = name = self._authenticate(call.metadata.get("authorization"))
            call.caller = name or call.peer.rpartition(":")[0] or call.peer
            if name or CALLER.get():  # may be set: calls may share a context
                CALLER.set(name)

    def _failed(
        self, rpc: Rpc, call: Call, span: Span, error: BaseException
    ) -> tuple[str, RpcStatus | None]:
        """Records a failed call.

        Returns:
            Name of the call's status code, and the status to send; None if the handler was
            cancelled, since its caller has left or the transport sends the status.
        """
        if isinstance(error, MemoryError):
            _log.error("request %s to %s: no memory for it (%s)", call.request_id, rpc.name, error)
            error = OutOfMemory()
        if isinstance(error, ServiceError):
            span.failed(error.status.name, expected=True)
            if rpc.counted:
                self._telemetry.refused(error)
            return error.status.name, RpcStatus.of(error)
        if isinstance(error, Exception):
            span.failed("INTERNAL", expected=False)
            # The text may contain secrets, so only the log gets it; the caller gets the request id.
            _log.error("request %s to %s failed", call.request_id, rpc.name, exc_info=error)
            internal = ServiceError(f"internal error, request id {call.request_id}")
            return "INTERNAL", RpcStatus.of(internal, {"request_id": call.request_id})
        late = time.monotonic() >= call.deadline
        ended = "UNAVAILABLE" if error.args == (ENDED,) else "CANCELLED"
        code = "DEADLINE_EXCEEDED" if late else ended
        span.failed(code, expected=True)
        return code, None

    def _end(self, rpc: Rpc, call: Call, span: Span, code: str) -> None:
        if span is not NO_SPAN:
            span.ended(call)
        if not rpc.counted:
            return
        seconds = time.monotonic() - call.arrived
        self._telemetry.request(rpc.name, call.model, code, seconds, self._transport)
        if call.routed:
            self._telemetry.routed(call.model, call.version, code, seconds)
        if call.token:
            self._telemetry.caller(call.token, code, call.rows)
        self._running -= 1
        if self._running == 0:
            self._idle.set()


def new_call(metadata: Mapping[str, str], peer: str, deadline: float, now: float) -> Call:
    """Returns the context of a new call; `deadline` and `now` are monotonic times in seconds."""
    requested = metadata.get("x-request-id")
    request_id = (requested and clean_request_id(requested)) or new_request_id()
    return Call(deadline=deadline, metadata=metadata, peer=peer, request_id=request_id, arrived=now)


async def _parsed(rpc: Rpc, raw: AsyncIterator[bytes]) -> AsyncGenerator[Message, None]:
    async for message in raw:
        yield rpc.parse(message)
