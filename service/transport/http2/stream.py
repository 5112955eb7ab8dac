"""One request and its response on a connection, and the table of a connection's streams."""

from collections.abc import Awaitable, Callable
from typing import Final, Protocol

from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error, protocol_error
from service.transport.http2.headers import RequestHead
from service.transport.http2.outbox import Outbox
from service.transport.http2.send_queue import Chunk, SendQueue

#: Our SETTINGS_INITIAL_WINDOW_SIZE: bytes of DATA on each stream.
STREAM_WINDOW: Final = 2**20


class Receiver(Protocol):
    """Callbacks of one stream; `on_sent` or `on_reset` is the last one."""

    def on_data(self, chunk: bytes) -> None:
        """Called with received DATA; it occupies the window until `Stream.consumed` is called."""

    def on_end(self) -> None:
        """Called when END_STREAM has been received: the request is complete."""

    def on_sent(self) -> None:
        """Called when END_STREAM has been sent: the response is complete."""

    def on_reset(self) -> None:
        """Called when the stream was reset by either side, or its connection lost."""


class _NullReceiver:
    """Receiver of closed streams; ignores all callbacks."""

    def on_data(self, chunk: bytes) -> None:
        pass

    def on_end(self) -> None:
        pass

    def on_sent(self) -> None:
        pass

    def on_reset(self) -> None:
        pass


NULL_RECEIVER: Receiver = _NullReceiver()


class Stream:
    """A request and its response on one HTTP/2 stream.

    Only for use in the connection's event loop. Output to a closed stream, or after its trailers,
    is ignored.

    Args:
        stream_id: Identifier on the connection.
        head: Header section of the request.
        peer: Address of the client, as in `ipv4:127.0.0.1:4711`.
        outbox: Output queue of the connection.
        send_window: Initial flow-control window for sending, in bytes.
        on_sent: Called with the stream's identifier once END_STREAM has been sent.
        reset: Called with the stream's identifier and an error code to send RST_STREAM.

    Attributes:
        id: Identifier on the connection.
        receiver: Receives the events of the stream.
        send_queue: DATA and trailers that are still to be sent.
        receive_window: Bytes of DATA that the peer may still send.
        body_bytes: Bytes of the request's body received so far.
        headers_sent: Whether the response has begun.
        remote_ended: Whether END_STREAM has been received (RFC 9113: half-closed, remote).
        closed: Whether END_STREAM has been sent, or the stream was reset.
    """

    __slots__ = (
        "_outbox",
        "_reset",
        "_unacknowledged",
        "body_bytes",
        "closed",
        "head",
        "headers_sent",
        "id",
        "peer",
        "receive_window",
        "receiver",
        "remote_ended",
        "send_queue",
    )

    def __init__(
        self,
        stream_id: int,
        head: RequestHead,
        peer: str,
        outbox: Outbox,
        send_window: int,
        on_sent: Callable[[int], None],
        reset: Callable[[int, ErrorCode], None],
    ):
        self.id = stream_id
        self.head = head
        self.peer = peer
        self.receiver = NULL_RECEIVER
        self.send_queue = SendQueue(stream_id, send_window, on_sent)
        self.receive_window = STREAM_WINDOW
        self.body_bytes = 0
        self.headers_sent = False
        self.remote_ended = False
        self.closed = False
        self._outbox = outbox
        self._reset = reset
        # Consumed bytes that no WINDOW_UPDATE has returned to the peer yet.
        self._unacknowledged = 0

    @property
    def queued_bytes(self) -> int:
        """Bytes of DATA that wait to be sent."""
        return self.send_queue.queued_bytes

    @property
    def moved_bytes(self) -> int:
        """Bytes of DATA received and sent so far, other than a response sent in one write."""
        return self.body_bytes + self.send_queue.sent_bytes

    def respond(self, headers: bytes, chunks: tuple[Chunk, ...], trailers: bytes) -> bool:
        """Sends a whole response, on a stream that has sent nothing yet.

        Args:
            headers: Header block.
            chunks: Parts of the body.
            trailers: Header block that ends the stream.

        Returns:
            False if nothing was sent, because too many bytes of responses wait already.
        """
        if self.closed or self.send_queue.trailers is not None:
            return True
        self.headers_sent = self._outbox.respond(self.send_queue, headers, chunks, trailers)
        return self.headers_sent

    def has_room(self, count: int) -> bool:
        """Whether the stream's window takes that many bytes of DATA, or else they may wait."""
        queue = self.send_queue
        return (not queue.queued_bytes and count <= queue.window) or self._outbox.has_room(count)

    def send_headers(self, headers: bytes) -> None:
        """Sends the header block that begins a response."""
        if not self.closed and self.send_queue.trailers is None:
            self.headers_sent = True
            self._outbox.send_headers(self.id, headers)

    def send_data(self, *chunks: Chunk) -> None:
        """Sends parts of the body, as far as windows allow, and queues the rest."""
        if not self.closed and self.send_queue.trailers is None:
            self._outbox.send_data(self.send_queue, chunks)

    def end(self, trailers: bytes) -> None:
        """Ends the response with trailers; without `send_headers` they are the whole response."""
        if not self.closed and self.send_queue.trailers is None:
            self._outbox.send_trailers(self.send_queue, trailers)

    def cut(self, trailers: bytes) -> None:
        """Ends the response now; queued DATA that flow control holds back is dropped."""
        if not self.closed:
            self._outbox.cut(self.send_queue, trailers)

    def reset(self, code: ErrorCode) -> None:
        """Resets the stream and drops its queued DATA."""
        if not self.closed:
            self._reset(self.id, code)

    def wait_writable(self) -> Awaitable[None]:
        """Waits while too much is queued (back-pressure)."""
        return self.send_queue.wait_writable()

    def consumed(self, count: int) -> None:
        """Replenishes the receive window by `count` bytes of DATA no longer held in memory."""
        if self.remote_ended or self.closed:
            return
        self._unacknowledged += count
        if self._unacknowledged >= STREAM_WINDOW // 2:
            self.receive_window += self._unacknowledged
            self._outbox.emit(frames.window_update(self.id, self._unacknowledged))
            self._unacknowledged = 0

    def check_length(self) -> None:
        """Compares the body so far with the request's `content-length`, if it has one.

        Raises:
            Http2Error: The body is too long, or complete and too short.
        """
        announced, got = self.head.content_length, self.body_bytes
        if announced is None or got == announced or (got < announced and not self.remote_ended):
            return
        raise protocol_error(f"content-length: {announced}, got {got} bytes", self.id)


class Streams:
    """The streams of a connection.

    Args:
        max_open: Our SETTINGS_MAX_CONCURRENT_STREAMS.

    Attributes:
        open: Open streams by identifier.
        last: Highest identifier that the client has used.
        refusing: Whether new streams are refused.
    """

    def __init__(self, max_open: int):
        self.open: dict[int, Stream] = {}
        self.last = 0
        self.refusing = False
        self._max_open = max_open
        # Identifiers of streams that we reset, oldest first: the peer may not know yet.
        self._reset: dict[int, None] = {}

    def admit(self, stream_id: int) -> None:
        """Checks whether the client may open a stream.

        Raises:
            Http2Error: The stream is refused; the client may retry on another connection.
        """
        if self.refusing:
            raise Http2Error(ErrorCode.REFUSED_STREAM, "the connection is shutting down", stream_id)
        if len(self.open) >= self._max_open:
            raise Http2Error(ErrorCode.REFUSED_STREAM, "too many streams", stream_id)

    def is_idle(self, stream_id: int) -> bool:
        """Whether the client has not opened the stream yet, or never can (even identifiers)."""
        return stream_id > self.last or not stream_id % 2

    def find(self, stream_id: int, frame_type: int) -> Stream | None:
        """Finds the stream of a received DATA or HEADERS frame.

        Returns:
            The stream, or None if we have reset it: the frame is to be ignored.

        Raises:
            Http2Error: The stream is idle or closed, or END_STREAM has been received on it.
        """
        stream = self.open.get(stream_id)
        if stream is not None:
            if stream.remote_ended:
                raise Http2Error(ErrorCode.STREAM_CLOSED, "a frame after END_STREAM", stream_id)
            return stream
        if self.is_idle(stream_id):
            raise protocol_error(f"frame {frame_type}: on an idle stream")
        if stream_id in self._reset:
            return None
        raise Http2Error(ErrorCode.STREAM_CLOSED, f"frame {frame_type}: on a closed stream")

    def add_reset(self, stream_id: int) -> None:
        """Remembers that we have reset a stream."""
        self._reset[stream_id] = None
        if len(self._reset) > 2 * self._max_open:
            del self._reset[next(iter(self._reset))]
