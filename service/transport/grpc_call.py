"""One gRPC call on an HTTP/2 stream (gRPC's PROTOCOL-HTTP2)."""

import asyncio
import base64
import logging
import math
import re
import time
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Final
from urllib.parse import quote

from google.protobuf.message import Message

from service.api.wire import Chunks
from service.dispatch.dispatcher import ENDED, Dispatcher, new_call
from service.dispatch.rpc import Rpc
from service.dispatch.status import CallFailed, RpcStatus, no_room, too_large
from service.engine.entry import QueueEntry
from service.errors import DeadlineExceeded, NotReady, OutOfMemory, ServiceError, Unimplemented
from service.transport.framing import (
    ENCODINGS,
    PREFIX_BYTES,
    MessageBuffer,
    prefix,
    whole_message,
)
from service.transport.http2.frames import ErrorCode
from service.transport.http2.headers import encode, status_200
from service.transport.http2.stream import Stream

_log = logging.getLogger(__name__)

_TIMEOUT = re.compile(r"(\d{1,8})([HMSmun])")
_SECONDS: Final = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}
_HEADERS: Final = status_200() + encode([("content-type", "application/grpc")])
_OK: Final = encode([("grpc-status", "0")])
_NOT_GRPC: Final = encode([(":status", "415"), ("content-type", "text/plain")])
# Fewer received bytes do not count as progress: a peer could hold memory for ever with single ones.
_PROGRESS_BYTES: Final = 4096
# Longest request of a method that may be called without a token, decompressed: a name, and whoever
# sends it may be anyone.
_MAX_PUBLIC_BYTES: Final = 65_536
# Characters of grpc-message that are not percent-encoded.
_UNESCAPED: Final = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


class GrpcCall:
    """One call, from headers to trailers; the `Receiver` of its stream.

    Args:
        stream: HTTP/2 stream of the call.
        rpc: Method that is called.
        dispatcher: Runs the method.
        max_bytes: Maximum size of a message in bytes, in either direction.
        hold: Called with the change in the request bytes held, and with those held now; may
            raise Overloaded.

    Attributes:
        received_at: When the request last grew by some kilobytes, or began to wait for more, on
            the event loop's clock.
    """

    __slots__ = (
        "_call",
        "_consumed",
        "_dispatcher",
        "_done",
        "_hold",
        "_max_bytes",
        "_messages",
        "_more",
        "_received_bytes",
        "_rpc",
        "_stream",
        "_task",
        "_timer",
        "_unanswered",
        "_whole",
        "received_at",
    )

    def __init__(
        self,
        stream: Stream,
        rpc: Rpc,
        dispatcher: Dispatcher,
        max_bytes: int,
        hold: Callable[[int, int], None],
    ):
        fields = stream.head.fields
        now = time.monotonic()
        timeout = fields.get("grpc-timeout")
        seconds = math.inf if timeout is None else _timeout(timeout)
        self._call = new_call(fields, stream.peer, now + seconds, now)
        self._stream = stream
        self._rpc = rpc
        self._dispatcher = dispatcher
        self._max_bytes = max_bytes
        self._hold = hold
        # The request, if it is one short message that has arrived in one piece; else its buffer.
        self._whole: bytes | None = None
        self._messages: MessageBuffer | None = None
        self._done = False
        self._consumed = 0
        self.received_at = 0.0
        # Value of the stream's `body_bytes` at that time.
        self._received_bytes = 0
        # Requests of a stream that have been taken and not been answered.
        self._unanswered = 0
        self._more: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        if seconds != math.inf:
            self._timer = asyncio.get_running_loop().call_later(seconds, self._expired)
        # Cancelling it cancels the handler.
        self._task: asyncio.Task[None] | QueueEntry | None = None
        if rpc.takes_stream:
            self._task = asyncio.get_running_loop().create_task(self._answer_stream())

    # Called by the connection.

    def on_data(self, chunk: bytes) -> None:
        """Adds received bytes to the request; a complete message wakes a streaming handler."""
        if self._done:
            return
        if self._messages is None:
            if self._stream.remote_ended and not self._rpc.takes_stream:
                self._whole = whole_message(chunk, self._max_bytes)
                if self._whole is not None:
                    return
            self._messages = self._buffer()
        received = self._stream.body_bytes
        if received - self._received_bytes >= _PROGRESS_BYTES:
            self._received_bytes = received
            self.received_at = asyncio.get_running_loop().time()
        try:
            complete = self._messages.feed(chunk)
            if not self._rpc.takes_stream:
                if not complete and self._stream.body_bytes == len(chunk):
                    # The first part of a large request: hold the rest only for an admitted caller.
                    self._dispatcher.precheck(self._rpc, self._call)
                elif complete and self._messages.more_than_one:
                    raise Unimplemented("request: got more than 1 message, wanted 1")
        except (CallFailed, ServiceError, MemoryError) as error:
            self._refuse(_status(error))
            return
        if complete:
            # The receive window is not replenished before the message is taken.
            self._consumed += len(chunk)
            self._wake()
        else:
            self._stream.consumed(len(chunk))

    def on_end(self) -> None:
        """Answers the request once all of it has been received."""
        if self._done:
            return
        if self._rpc.takes_stream:
            self._wake()
        elif self._whole is not None or (self._messages is not None and self._messages.ready):
            if self._rpc.gives_stream:
                self._task = asyncio.get_running_loop().create_task(self._answer_stream())
            else:
                self._start()
        elif self._messages is not None and self._messages.held_bytes:
            self._refuse(RpcStatus.of(_cut_short()))
        else:
            self._refuse(RpcStatus.of(Unimplemented("request: got 0 messages, wanted 1")))

    def on_sent(self) -> None:
        """Cancels the deadline timer, which runs until the reply has been sent."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def on_reset(self) -> None:
        """Cancels the handler: the caller has cancelled, or its connection is lost."""
        done, task = self._done, self._task
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._close()
        if task is not None and not done:
            task.cancel()

    # Replies.

    def _start(self) -> None:
        """Answers the request, in a task unless there is a plan for it."""
        request: bytes | Message
        try:
            request = self._take()
            if self._rpc.plan is not None:
                begun = self._dispatcher.start(
                    self._rpc, request, self._call, self._send_whole, self._finished
                )
                if isinstance(begun, QueueEntry):
                    self._task = begun
                    return
                request = begun
        except (CallFailed, ServiceError, MemoryError) as error:
            self._refuse(_status(error))
            return
        self._task = asyncio.get_running_loop().create_task(self._answer(request))

    def _take(self) -> bytes:
        whole = self._whole
        if whole is None:
            assert self._messages is not None
            if self._messages.compressed:
                # A few bytes may become many: nothing is decompressed but for an admitted caller.
                self._dispatcher.precheck(self._rpc, self._call)
            return self._messages.take()
        self._whole = None
        return whole

    def _finished(self, failure: RpcStatus | None) -> None:
        if failure is None:
            self._close()
        else:
            self._refuse(failure)

    async def _answer(self, request: bytes | Message) -> None:
        try:
            await self._dispatcher.unary(self._rpc, request, self._call, self._send_whole)
        except (CallFailed, ServiceError, MemoryError) as error:
            self._refuse(_status(error))
            return
        self._close()

    def _send_whole(self, reply: Chunks) -> None:
        if self._done:
            return
        size = sum(map(len, reply))
        if size > self._max_bytes:
            raise too_large(size, self._max_bytes)
        if not self._stream.respond(_HEADERS, (prefix(size), *reply), _OK):
            raise no_room(size)

    async def _answer_stream(self) -> None:
        try:
            requests = self._requests() if self._rpc.takes_stream else self._take()
            await self._dispatcher.stream(self._rpc, requests, self._call, self._send_reply)
        except (CallFailed, ServiceError, MemoryError) as error:
            self._refuse(_status(error))
            return
        if self._done:
            return
        if not self._stream.headers_sent:
            self._stream.send_headers(_HEADERS)
        self._stream.end(_OK)
        self._close()

    async def _send_reply(self, reply: Chunks) -> None:
        size = sum(map(len, reply))
        if size > self._max_bytes:
            raise too_large(size, self._max_bytes)
        if not self._rpc.counted and not self._stream.has_room(PREFIX_BYTES + size):
            raise no_room(size)  # other replies passed admission
        if not self._stream.headers_sent:
            self._stream.send_headers(_HEADERS)
        self._stream.send_data(prefix(size) + reply[0], *reply[1:])
        self._unanswered -= 1
        await self._stream.wait_writable()

    async def _requests(self) -> AsyncIterator[bytes]:
        messages = self._messages = self._messages or self._buffer()
        while True:
            while messages.ready:
                message = messages.take()
                if self._consumed and not messages.ready:
                    self._stream.consumed(self._consumed)
                    self._consumed = 0
                self._unanswered += 1
                yield message
            if self._stream.remote_ended:
                if messages.held_bytes:
                    raise _cut_short()
                return
            loop = asyncio.get_running_loop()
            self.received_at = loop.time()  # until now the caller may have lacked a window
            self._more = loop.create_future()
            await self._more

    def _buffer(self) -> MessageBuffer:
        """Makes the buffer of a request that may arrive in several pieces."""
        self.received_at = asyncio.get_running_loop().time()
        encoding = self._stream.head.fields.get("grpc-encoding", "identity")
        limit = min(self._max_bytes, _MAX_PUBLIC_BYTES) if self._rpc.public else self._max_bytes
        return MessageBuffer(encoding, limit, self._hold)

    def _wake(self) -> None:
        if self._more is not None and not self._more.done():
            self._more.set_result(None)

    # Failures.

    @property
    def counted(self) -> bool:
        """Whether a drain waits for the call."""
        return self._rpc.counted

    @property
    def awaits_request(self) -> bool:
        """Whether the call holds a considerable part of a request, and waits for the rest."""
        if self._done or self._messages is None or not self._messages.reported_bytes:
            return False
        if self._rpc.takes_stream:
            return self._more is not None and not self._more.done()
        return not self._stream.remote_ended

    @property
    def needs_caller(self) -> bool:
        """Whether the call may last for ever unless its caller acts.

        Not if it has a deadline, or is being computed. Health watches are never computed.
        """
        rpc, stream = self._rpc, self._stream
        if self._call.deadline < math.inf:
            return False
        if stream.queued_bytes or not rpc.counted:
            return True
        return self._unanswered <= 0 if rpc.takes_stream else not stream.remote_ended

    def cut(self, error: NotReady) -> None:
        """Ends the call now, with an error unless its whole reply can be sent.

        Queued bytes are sent as far as flow control allows; the rest is dropped.
        """
        trailers = _trailers(RpcStatus.of(error), headers_sent=self._stream.headers_sent)
        task = self._task
        self._close()
        self._stream.cut(trailers)
        if task is not None:
            task.cancel(ENDED)

    def _expired(self) -> None:
        """Ends the call when its deadline has passed."""
        self._timer = None
        # The event loop's clock is coarser, so the timer may fire a millisecond early.
        self._call.deadline = min(self._call.deadline, time.monotonic())
        if self._stream.queued_bytes:
            # Trailers would have to wait behind the queued reply.
            self._stream.reset(ErrorCode.CANCEL)
        else:
            self._refuse(RpcStatus.of(DeadlineExceeded("the deadline has passed")))

    def _refuse(self, failure: RpcStatus) -> None:
        """Ends the call with a status other than OK."""
        if self._done:
            return
        self._stream.end(_trailers(failure, headers_sent=self._stream.headers_sent))
        task = self._task
        self._close()
        if task is not None and task is not asyncio.current_task():
            task.cancel()

    def _close(self) -> None:
        self._done = True
        self._task = None  # breaks a reference cycle
        self._whole = None
        if self._messages is not None:
            self._messages.close()


def refuse(stream: Stream, error: ServiceError) -> None:
    """Refuses a call with an error before a `GrpcCall` is created for it."""
    stream.end(_trailers(RpcStatus.of(error), headers_sent=False))


def refuse_non_grpc(stream: Stream) -> None:
    """Answers a request that is not gRPC with HTTP status 415, as PROTOCOL-HTTP2 requires."""
    stream.end(_NOT_GRPC)


def _status(error: CallFailed | ServiceError | MemoryError) -> RpcStatus:
    if isinstance(error, CallFailed):
        return error.failure
    if isinstance(error, ServiceError):
        return RpcStatus.of(error)
    _log.error("no memory for the messages of a call (%s)", error)
    return RpcStatus.of(OutOfMemory())


def _cut_short() -> ServiceError:
    return ServiceError("request: it ends within a message")


def _timeout(text: str) -> float:
    """Returns a `grpc-timeout` in seconds; infinity if it is malformed."""
    match = _TIMEOUT.fullmatch(text)
    return float(match[1]) * _SECONDS[match[2]] if match else math.inf


def _trailers(failure: RpcStatus, *, headers_sent: bool) -> bytes:
    fields: list[tuple[str, str]] = [
        ("grpc-status", str(int(failure.status))),
        ("grpc-message", quote(failure.message, safe=_UNESCAPED)),
    ]
    if failure.status is Unimplemented.status:
        fields.append(("grpc-accept-encoding", ENCODINGS))
    fields += _encoded(failure.metadata)
    return (b"" if headers_sent else _HEADERS) + encode(fields)


def _encoded(metadata: Iterable[tuple[str, str | bytes]]) -> Iterable[tuple[str, str]]:
    for key, value in metadata:
        if isinstance(value, bytes):
            yield key, base64.b64encode(value).decode("ascii").rstrip("=")
        else:
            yield key, value
