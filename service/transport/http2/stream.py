"""One request and its response on a connection, and all of a connection by their numbers."""

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Final, Protocol

from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error
from service.transport.http2.headers import Head

if TYPE_CHECKING:
    from service.transport.http2.connection import Connection
    from service.transport.http2.outbox import Outbox

Chunk = bytes | memoryview

#: What each stream may send before it is granted more.
WINDOW: Final = 2**20

# A writer waits while more than this is queued: one message is sent while the next is made.
_QUEUED_BYTES = 64 * 1024


class Receiver(Protocol):
    """Takes what a peer sends in a request."""

    def on_data(self, chunk: bytes) -> None:
        """DATA has been received; `Stream.consumed` grants its window again."""

    def on_end(self) -> None:
        """END_STREAM has been received: the request is complete."""

    def on_sent(self) -> None:
        """END_STREAM has been sent: the response is complete."""

    def on_reset(self) -> None:
        """The stream was reset, by either side or with its connection."""


class _Nobody:
    """Takes the rest of a request that nobody is interested in."""

    def on_data(self, chunk: bytes) -> None:
        pass

    def on_end(self) -> None:
        pass

    def on_sent(self) -> None:
        pass

    def on_reset(self) -> None:
        pass


NOBODY: Receiver = _Nobody()


class Stream:
    """A request that is being answered. To be used in the loop of its connection.

    Attributes:
        id: Its number on the connection.
        head: What the request began with.
        receiver: Takes the body.
        send_window: Bytes that the peer takes before it grants more.
        receive_window: Bytes that the peer may still send.
        remote_ended: Whether the body is complete.
        local_ended: Whether the response is complete.
        started: Whether the response has begun.
        in_turn: Whether it stands in the connection's line of those that have data to send.
        body_bytes: Length of the body so far.
    """

    __slots__ = (
        "_connection",
        "_outbox",
        "_space",
        "_to_grant",
        "body_bytes",
        "chunks",
        "head",
        "id",
        "in_turn",
        "local_ended",
        "queued_bytes",
        "receive_window",
        "receiver",
        "remote_ended",
        "send_window",
        "started",
        "trailers",
    )

    def __init__(
        self, number: int, head: Head, connection: "Connection", outbox: "Outbox", send_window: int
    ):
        self.id = number
        self.head = head
        self.receiver = NOBODY
        self.send_window = send_window
        self.receive_window = WINDOW
        self.remote_ended = False
        self.local_ended = False
        self.started = False
        self.in_turn = False
        self.body_bytes = 0
        # What waits for windows, and what follows it.
        self.chunks: deque[Chunk] = deque()
        self.queued_bytes = 0
        self.trailers: bytes | None = None
        self._connection = connection
        self._outbox = outbox
        self._to_grant = 0
        self._space: asyncio.Future[None] | None = None

    @property
    def peer(self) -> str:
        """Who asks, as in `ipv4:127.0.0.1:4711`."""
        return self._connection.peer

    @property
    def open(self) -> bool:
        """Whether anything may still be sent."""
        return not self.local_ended and self.trailers is None

    def respond(self, head: bytes, chunks: tuple[Chunk, ...], trailers: bytes) -> None:
        """Sends a whole response.

        Args:
            head: Header block.
            chunks: What comes between.
            trailers: Header block at the end.
        """
        if self.open:
            self._outbox.respond(self, head, chunks, trailers)

    def start(self, head: bytes) -> None:
        """Sends the header block that a response begins with."""
        if self.open:
            self.started = True
            self._outbox.send_head(self, head, end=False)

    def write(self, *chunks: Chunk) -> None:
        """Sends some of the body, as windows allow."""
        if self.open:
            self._outbox.send_data(self, chunks)

    def finish(self, trailers: bytes) -> None:
        """Sends the trailers; without a `start` before, a response that is nothing else."""
        if self.open:
            self._outbox.send_trailers(self, trailers)

    def reset(self, code: ErrorCode) -> None:
        """Ends the stream where it is."""
        self._connection.reset(self, code)

    def consumed(self, count: int) -> None:
        """Lets the peer send so many bytes more."""
        if self.remote_ended or self.local_ended:
            return
        self._to_grant += count
        if self._to_grant >= WINDOW // 2:
            self.receive_window += self._to_grant
            self._outbox.emit(frames.window_update(self.id, self._to_grant))
            self._to_grant = 0

    async def space(self) -> None:
        """Waits while the peer does not take what it is sent."""
        while self.queued_bytes > _QUEUED_BYTES and not self.local_ended:
            if self._space is None:
                self._space = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._space)

    def ended(self) -> None:
        """Told by the outbox that the response is out."""
        self._connection.ended(self)

    def sent(self, count: int) -> None:
        """Told by the outbox that so many queued bytes are on their way."""
        self.queued_bytes -= count
        if self.queued_bytes <= _QUEUED_BYTES:
            self.wake()

    def wake(self) -> None:
        """Ends a wait for space."""
        if self._space is not None:
            if not self._space.done():
                self._space.set_result(None)
            self._space = None


class Streams:
    """The streams of a connection.

    Args:
        most: Most open ones that a client has at a time.

    Attributes:
        open: Those that are being answered, by their numbers.
        last: The highest number that the client has used.
    """

    def __init__(self, most: int):
        self.open: dict[int, Stream] = {}
        self.last = 0
        self._most = most
        # Those that we ended while their peer was still sending, oldest first.
        self._abandoned: dict[int, None] = {}

    @property
    def full(self) -> bool:
        """Whether no more may be opened."""
        return len(self.open) >= self._most

    def is_idle(self, number: int) -> bool:
        """Whether a client has not opened it, or cannot."""
        return number > self.last or not number % 2

    def known(self, number: int, kind: int) -> Stream | None:
        """The stream of a frame; None where we ended it and the peer may not know yet.

        Raises:
            Http2Error: The peer has ended it, or there has never been one.
        """
        stream = self.open.get(number)
        if stream is not None:
            if stream.remote_ended:
                raise Http2Error(ErrorCode.STREAM_CLOSED, "a frame after the end", number)
            return stream
        if self.is_idle(number):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"frame {kind}: on an idle stream")
        if number in self._abandoned:
            return None
        raise Http2Error(ErrorCode.STREAM_CLOSED, f"frame {kind}: on a stream that has ended")

    def abandon(self, number: int) -> None:
        """Remembers that we ended a stream while its peer may still be sending."""
        self._abandoned[number] = None
        if len(self._abandoned) > 2 * self._most:
            del self._abandoned[next(iter(self._abandoned))]
