"""Processing of received frames, for streams and the connection (RFC 9113 section 6)."""

from collections.abc import Callable
from typing import Final, Protocol

from service.transport.http2 import frames
from service.transport.http2.frame_buffer import FrameBuffer
from service.transport.http2.frames import ErrorCode, Http2Error, Setting, protocol_error
from service.transport.http2.headers import (
    MAX_BLOCK_BYTES,
    HeaderDecoder,
    PartialBlock,
    block_too_long,
    check_trailers,
)
from service.transport.http2.outbox import Outbox
from service.transport.http2.rate_limit import FloodLimits
from service.transport.http2.stream import Stream, Streams

#: Our receive window for a whole connection, in bytes of DATA.
CONNECTION_WINDOW: Final = 16 * 2**20


class Session(Protocol):
    """State and callbacks of a connection, as its reader uses them.

    Attributes:
        peer: Address of the client, as in `ipv4:127.0.0.1:4711`.
        closing: Whether the connection is closing; further input is ignored.
    """

    peer: str
    closing: bool

    def send_preface(self) -> None:
        """Sends the server's connection preface, once."""

    def refuse_http_1(self) -> None:
        """Answers an HTTP/1.1 client, and closes the connection."""

    def on_settings(self) -> None:
        """Called when the client's preface is complete: its first SETTINGS has been received."""

    def on_ping_ack(self, data: bytes) -> bool:
        """Handles the acknowledgement of a PING; returns whether the PING was ours."""

    def on_request(self, stream: Stream) -> None:
        """Sets the receiver of a new stream, which carries a request."""

    def on_sent(self, stream_id: int) -> None:
        """Closes a stream on which END_STREAM has been sent."""

    def on_reset(self, stream_id: int) -> None:
        """Closes an open stream that the client has reset."""

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Sends RST_STREAM, and closes the stream if it is open."""


class Reader:
    """Processes the frames that one connection receives.

    Args:
        session: The connection.
        streams: Streams of the connection.
        outbox: Output queue of the connection.
    """

    def __init__(self, session: Session, streams: Streams, outbox: Outbox):
        self._session = session
        self._streams = streams
        self._outbox = outbox
        # Bound methods shared by all streams.
        self._on_sent, self._reset = session.on_sent, session.reset
        self._frames = FrameBuffer()
        self._headers = HeaderDecoder()
        # Part of the client's preface received so far; None once it is complete.
        self._preface: bytes | None = b""
        self._settings_received = False
        self._block: PartialBlock | None = None
        self._initial_window = frames.DEFAULT_WINDOW
        self._receive_window = CONNECTION_WINDOW
        self._unacknowledged = 0
        self._limits = FloodLimits()

    def feed(self, data: bytes) -> None:
        """Processes received bytes, up to the last frame that is complete.

        Raises:
            Http2Error: A connection error.
        """
        if self._preface is not None:
            data = self._read_preface(self._preface + data)
        session = self._session
        for frame_type, flags, stream_id, payload in self._frames.feed(data):
            block = self._block
            if block is not None and (
                frame_type != frames.CONTINUATION or stream_id != block.stream_id
            ):
                raise protocol_error("a header block was interrupted")
            if not self._settings_received and frame_type != frames.SETTINGS:
                raise protocol_error("the first frame is not SETTINGS")
            if frame_type >= len(_HANDLERS):
                self._count_overhead()  # unknown types are ignored (section 5.5)
                continue
            try:
                _HANDLERS[frame_type](self, flags, stream_id, payload)
            except Http2Error as error:
                if not error.stream_id:
                    raise
                self._reset(error.stream_id, error.code)
                if not self._limits.allow_reset():
                    raise Http2Error(
                        ErrorCode.ENHANCE_YOUR_CALM, "too many stream errors"
                    ) from error
            if session.closing:
                return

    def _read_preface(self, data: bytes) -> bytes:
        """Reads the client's connection preface; returns the bytes after it."""
        preface = frames.PREFACE
        if data.startswith(preface):
            self._preface = None
            self._session.send_preface()
            return data[len(preface) :]
        if preface.startswith(data):
            self._preface = data
        elif data.split(b"\r\n", 1)[0].endswith((b"HTTP/1.1", b"HTTP/1.0")):
            self._session.refuse_http_1()
        else:
            raise protocol_error("no HTTP/2 connection preface")
        return b""

    # Requests.

    def _on_data(self, flags: int, stream_id: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._unacknowledged += size
        if self._unacknowledged >= CONNECTION_WINDOW // 2:
            self._replenish()
        stream = self._streams.open.get(stream_id)
        if stream is None or stream.remote_ended:
            stream = self._streams.find(stream_id, frames.DATA)
        if stream is None:
            if not size:
                self._count_overhead()
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise Http2Error(
                ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window", stream_id
            )
        ends = bool(flags & frames.END_STREAM)
        chunk = frames.strip_padding(payload, flags) if flags & frames.PADDED else payload
        if len(chunk) < size:
            stream.consumed(size - len(chunk))
        stream.body_bytes += len(chunk)
        # Set before the receiver is called: if it responds, the complete request needs neither
        # RST_STREAM nor WINDOW_UPDATE.
        stream.remote_ended = ends
        if stream.head.content_length is not None:
            stream.check_length()
        if chunk:
            stream.receiver.on_data(chunk)
        elif not ends:
            self._count_overhead()
        if ends:
            stream.receiver.on_end()

    def _replenish(self) -> None:
        """Replenishes the connection's receive window; the streams' windows limit the memory."""
        self._receive_window += self._unacknowledged
        self._outbox.emit(frames.window_update(0, self._unacknowledged))
        self._unacknowledged = 0

    def _on_headers(self, flags: int, stream_id: int, payload: bytes) -> None:
        if flags & frames.PADDED:
            payload = frames.strip_padding(payload, flags)
        if flags & frames.PRIORITY_FLAG:
            if len(payload) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS: too short for its priority")
            payload = payload[5:]
        if not stream_id % 2:
            raise protocol_error(f"HEADERS: stream {stream_id}, wanted an odd number")
        if len(payload) > MAX_BLOCK_BYTES:
            raise block_too_long()
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(stream_id, payload, ends)
        else:
            self._block = PartialBlock(stream_id, payload, end_stream=ends)

    def _on_continuation(self, flags: int, stream_id: int, payload: bytes) -> None:
        block = self._block
        if block is None:
            raise protocol_error("CONTINUATION without a header block before it")
        block.add(payload)
        if flags & frames.END_HEADERS:
            self._block = None
            self._on_block(stream_id, block.join(), block.end_stream)

    def _on_block(self, stream_id: int, block: bytes, ends: bool) -> None:
        streams, session = self._streams, self._session
        if stream_id <= streams.last:
            self._on_trailers(stream_id, block, ends)
            return
        streams.last = stream_id
        # Decoded even if the stream is refused, to keep the dynamic table in sync.
        head = self._headers.request(block, stream_id)
        streams.admit(stream_id)
        stream = Stream(
            stream_id,
            head,
            session.peer,
            self._outbox,
            self._initial_window,
            self._on_sent,
            self._reset,
        )
        stream.remote_ended = ends
        if head.content_length is not None:
            stream.check_length()
        streams.open[stream_id] = stream
        session.on_request(stream)
        if ends:
            stream.receiver.on_end()

    def _on_trailers(self, stream_id: int, block: bytes, ends: bool) -> None:
        fields = self._headers.decode(block)
        stream = self._streams.find(stream_id, frames.HEADERS)
        if stream is None:
            self._count_overhead()
            return
        if not ends:
            raise protocol_error("trailers without END_STREAM", stream_id)
        check_trailers(fields, stream_id)
        stream.remote_ended = True
        stream.check_length()
        stream.receiver.on_end()

    def _on_rst_stream(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM: wanted 4 bytes")
        if self._streams.is_idle(stream_id):
            raise protocol_error("RST_STREAM: on an idle stream")
        if stream_id not in self._streams.open:
            self._count_overhead()
            return
        self._session.on_reset(stream_id)
        if not self._limits.allow_reset():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams were reset")

    def _on_priority(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        if not stream_id:
            raise protocol_error("PRIORITY: on stream 0")
        if len(payload) != 5:
            # A stream error if the stream can be reset, which an idle one cannot.
            number = stream_id if stream_id in self._streams.open else 0
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY: wanted 5 bytes", number)
        self._count_overhead()

    def _on_push_promise(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        raise protocol_error("PUSH_PROMISE: from a client")

    # The connection.

    def _on_settings(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("SETTINGS: on a stream")
        if flags & frames.ACK:
            if payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS: a payload after ACK")
            self._count_overhead()
            return
        if len(payload) % 6:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS: wanted a multiple of 6 bytes")
        self._count_overhead()
        before = self._initial_window
        for identifier, value in frames.parse_settings(payload):
            self._apply(identifier, value)
        # Once per frame, even if the setting is repeated in it: every stream is visited.
        if self._initial_window != before:
            self._widen_all(self._initial_window - before)
        if not self._settings_received:
            self._settings_received = True
            self._session.on_settings()
        self._outbox.emit(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _apply(self, identifier: int, value: int) -> None:
        if identifier == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: initial window too large")
            self._initial_window = value
        elif identifier == Setting.HEADER_TABLE_SIZE:
            self._outbox.set_table_size(value)
        elif identifier == Setting.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME_BYTES <= value < 2**24:
                raise protocol_error("SETTINGS: frame size out of range")
            self._outbox.set_max_frame_size(value)
        elif identifier == Setting.ENABLE_PUSH and value > 1:
            raise protocol_error("SETTINGS: ENABLE_PUSH, wanted 0 or 1")

    def _widen_all(self, change: int) -> None:
        for stream in self._streams.open.values():
            queue = stream.send_queue
            if queue.window + change > frames.MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: a window too large")
            self._outbox.widen(queue, change)

    def _on_window_update(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE: wanted 4 bytes")
        increment = frames.parse_uint32(payload) & frames.MAX_WINDOW
        if stream_id and self._streams.is_idle(stream_id):
            raise protocol_error("WINDOW_UPDATE: on an idle stream")
        self._count_overhead()
        if stream_id == 0:
            if not increment:
                raise protocol_error("WINDOW_UPDATE: increment of 0")
            self._outbox.widen_connection(increment)
            return
        stream = self._streams.open.get(stream_id)
        if stream is None:
            return
        if not increment:
            raise protocol_error("WINDOW_UPDATE: increment of 0", stream_id)
        if stream.send_queue.window + increment > frames.MAX_WINDOW:
            raise Http2Error(
                ErrorCode.FLOW_CONTROL_ERROR, "a stream's window beyond 2^31 - 1", stream_id
            )
        self._outbox.widen(stream.send_queue, increment)

    def _on_ping(self, flags: int, stream_id: int, payload: bytes) -> None:
        if stream_id:
            raise protocol_error("PING: on a stream")
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING: wanted 8 bytes")
        if not flags & frames.ACK:
            self._count_overhead()
            self._outbox.emit(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif not self._session.on_ping_ack(payload):
            self._count_overhead()

    def _on_goaway(self, flags: int, stream_id: int, payload: bytes) -> None:  # noqa: ARG002
        if stream_id:
            raise protocol_error("GOAWAY: on a stream")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY: wanted at least 8 bytes")
        # Nothing to do: the client closes the connection when it has its responses.
        self._count_overhead()

    def _count_overhead(self) -> None:
        if not self._limits.allow_overhead(self._outbox.data_frames + self._streams.last):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames without a request")


# Indexed by frame type. Unbound: bound methods kept by a reader would be reference cycles.
_HANDLERS: Final[tuple[Callable[[Reader, int, int, bytes], None], ...]] = (
    Reader._on_data,
    Reader._on_headers,
    Reader._on_priority,
    Reader._on_rst_stream,
    Reader._on_settings,
    Reader._on_push_promise,
    Reader._on_ping,
    Reader._on_goaway,
    Reader._on_window_update,
    Reader._on_continuation,
)
