"""Bytes in: frames, and what a connection or a stream does about each (RFC 9113 section 6)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from service.transport.http2 import frames
from service.transport.http2.budget import Budget
from service.transport.http2.frames import ErrorCode, Http2Error, Setting
from service.transport.http2.headers import MAX_BLOCK_BYTES, HeaderDecoder, check_trailers
from service.transport.http2.outbox import Outbox
from service.transport.http2.stream import Stream, Streams

if TYPE_CHECKING:
    from service.transport.http2.connection import Connection

#: What all streams together may send before they are granted more.
CONNECTION_WINDOW: Final = 16 * 2**20
# A header block may come in pieces; those of a flood are many and small.
_MOST_BLOCK_FRAMES: Final = 32
# Frames that say nothing, for each that says something: grpc-go pings and grants with every
# frame of data that it gets.
_TRIFLES_A_FRAME: Final = 10


class Reader:
    """Parses what one connection receives.

    Args:
        connection: Told of what concerns the whole of it.
        streams: Those of the connection.
        outbox: Takes what is to be answered.
    """

    def __init__(self, connection: "Connection", streams: Streams, outbox: Outbox):
        self._connection = connection
        self._streams = streams
        self._outbox = outbox
        self._headers = HeaderDecoder()
        self._greeted = False
        self._settled = False
        self._rest = bytearray()
        self._needed = 0
        self._block: list[bytes] = []
        self._block_stream = 0
        self._block_ends_stream = False
        self._initial_window = frames.DEFAULT_WINDOW
        self._receive_window = CONNECTION_WINDOW
        self._to_grant = 0
        # Figures of nghttp2, which has them since CVE-2023-44487: resets cost us more than
        # they cost the peer, and so do frames that say nothing.
        self._resets = Budget(1000, 33)
        self._trifles = Budget(1000, 100)
        self._frames_seen = 0

    def feed(self, data: bytes) -> None:
        """Handles the frames that are complete, and keeps the rest.

        Raises:
            Http2Error: Something is wrong that the connection cannot survive.
        """
        at = 0
        if self._rest:
            at = self._complete(data)
            if len(self._rest) < self._needed:
                return
            begun, self._rest = bytes(self._rest), bytearray()
            self._rest += begun[self._parse(begun, 0) :]
            if self._rest or self._connection.closing:
                return
        at = self._parse(data, at)
        if at < len(data):
            self._rest += data[at:]

    def _complete(self, data: bytes) -> int:
        """Adds what is missing of the frame that has begun; returns how much that was.

        No more than that is copied once more.
        """
        rest, at = self._rest, 0
        if self._greeted and len(rest) < frames.HEAD_BYTES:
            at = frames.HEAD_BYTES - len(rest)
            rest += data[:at]
            if len(rest) < frames.HEAD_BYTES:
                return len(data)
            self._needed = frames.HEAD_BYTES + frames.checked(frames.parse_head(rest, 0)[0])
        stop = at + self._needed - len(rest) if self._greeted else len(data)
        rest += data[at:stop]
        return stop

    def _parse(self, data: bytes, at: int) -> int:
        """Handles the frames that are complete and returns where the next one begins."""
        end = len(data)
        if not self._greeted:
            at = self._greet(data)
            if not self._greeted:
                return at
        while end - at >= frames.HEAD_BYTES:
            length, kind, flags, number = frames.parse_head(data, at)
            stop = at + frames.HEAD_BYTES + frames.checked(length)
            if stop > end:
                self._needed = stop - at
                return at
            payload = data[at + frames.HEAD_BYTES : stop]
            at = stop
            if kind == frames.DATA and not flags and length:
                payload, flags, at = frames.whole_body(data, payload, number, at)
            if self._block_stream and (kind != frames.CONTINUATION or number != self._block_stream):
                raise _protocol_error("a header block was interrupted")
            if not self._settled and kind != frames.SETTINGS:
                raise _protocol_error("the first frame is not SETTINGS")
            if kind >= len(_HANDLERS):
                self._trifle()  # extensions are to be ignored
                continue
            try:
                _HANDLERS[kind](self, flags, number, payload)
            except Http2Error as error:
                if not error.stream:
                    raise
                self._fail_stream(error)
            if self._connection.closing:
                return end
        self._needed = frames.HEAD_BYTES
        return at

    def _greet(self, data: bytes) -> int:
        preface = frames.PREFACE
        if data.startswith(preface):
            self._greeted = True
            self._connection.welcome()
            return len(preface)
        if preface.startswith(data):
            self._needed = len(data) + 1
            return 0
        if data.split(b"\r\n", 1)[0].endswith((b"HTTP/1.1", b"HTTP/1.0")):
            self._connection.refuse_http_1()
            return len(data)
        raise _protocol_error("no HTTP/2 connection preface")

    # Requests.

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._credit(size)
        stream = self._streams.known(number, frames.DATA)
        if stream is None:
            if not size:
                self._trifle()
            return
        stream.receive_window -= size
        if stream.receive_window < 0:
            raise Http2Error(
                ErrorCode.FLOW_CONTROL_ERROR, "more data than the stream's window", number
            )
        ends = bool(flags & frames.END_STREAM)
        chunk = frames.without_padding(payload, flags) if flags & frames.PADDED else payload
        if len(chunk) < size:
            stream.consumed(size - len(chunk))
        stream.body_bytes += len(chunk)
        # First of all: what is now answered needs no RST_STREAM, and grants no more.
        stream.remote_ended = ends
        if stream.head.content_length is not None:
            _check_length(stream)
        if chunk:
            stream.receiver.on_data(chunk)
        elif not ends:
            self._trifle()
        if ends:
            stream.receiver.on_end()

    def _credit(self, count: int) -> None:
        """Grants the connection what it has used; how much a stream may send bounds it."""
        self._to_grant += count
        if self._to_grant >= CONNECTION_WINDOW // 2:
            self._receive_window += self._to_grant
            self._outbox.emit(frames.window_update(0, self._to_grant))
            self._to_grant = 0

    def _on_headers(self, flags: int, number: int, payload: bytes) -> None:
        payload = frames.without_padding(payload, flags)
        if flags & frames.PRIORITISED:
            if len(payload) < 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "HEADERS: no room for its priority")
            payload = payload[5:]
        if not number % 2:
            raise _protocol_error(f"HEADERS: stream {number}, wanted an odd number")
        if len(payload) > MAX_BLOCK_BYTES:
            raise _too_long()
        ends = bool(flags & frames.END_STREAM)
        if flags & frames.END_HEADERS:
            self._on_block(number, payload, ends)
        else:
            self._block, self._block_stream = [payload], number
            self._block_ends_stream = ends

    def _on_continuation(self, flags: int, number: int, payload: bytes) -> None:
        if not self._block_stream:
            raise _protocol_error("CONTINUATION without a header block before it")
        self._block.append(payload)
        if len(self._block) > _MOST_BLOCK_FRAMES or sum(map(len, self._block)) > MAX_BLOCK_BYTES:
            raise _too_long()
        if flags & frames.END_HEADERS:
            block, self._block = b"".join(self._block), []
            self._block_stream = 0
            self._on_block(number, block, self._block_ends_stream)

    def _on_block(self, number: int, block: bytes, ends: bool) -> None:
        streams = self._streams
        if number <= streams.last:
            self._on_trailers(number, block, ends)
            return
        streams.last = number
        # Whatever is refused, the table of the headers has to follow.
        head = self._headers.request(block, number)
        if self._connection.refusing:
            raise Http2Error(ErrorCode.REFUSED_STREAM, "the connection is being retired", number)
        if streams.full:
            raise Http2Error(ErrorCode.REFUSED_STREAM, "too many streams", number)
        stream = Stream(number, head, self._connection, self._outbox, self._initial_window)
        stream.remote_ended = ends
        if head.content_length is not None:
            _check_length(stream)
        streams.open[number] = stream
        self._connection.accept(stream)
        if ends:
            stream.receiver.on_end()

    def _on_trailers(self, number: int, block: bytes, ends: bool) -> None:
        fields = self._headers.decode(block)
        stream = self._streams.known(number, frames.HEADERS)
        if stream is None:
            self._trifle()
            return
        if not ends:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "trailers that end nothing", number)
        check_trailers(fields, number)
        stream.remote_ended = True
        _check_length(stream)
        stream.receiver.on_end()

    def _on_rst_stream(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM: wanted 4 bytes")
        if self._streams.is_idle(number):
            raise _protocol_error("RST_STREAM: on an idle stream")
        if number not in self._streams.open:
            self._trifle()
            return
        self._connection.lose(number)
        if not self._resets.spend():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams were reset")

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if not number:
            raise _protocol_error("PRIORITY: on no stream")
        if len(payload) != 5:
            # A stream that there is not cannot be reset.
            stream = number if number in self._streams.open else 0
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY: wanted 5 bytes", stream)
        self._trifle()

    def _on_push_promise(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        raise _protocol_error("PUSH_PROMISE: from a client")

    # What the peer allows, and how it is.

    def _on_settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise _protocol_error("SETTINGS: on a stream")
        if flags & frames.ACK:
            if payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS: an acknowledgement's text")
            self._trifle()
            return
        if len(payload) % 6:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS: wanted six bytes each")
        self._trifle()
        before = self._initial_window
        for key, value in frames.parse_settings(payload):
            self._set(key, value)
        # Once, however often it was said: each time costs a look at every stream.
        if self._initial_window != before:
            self._widen_all(self._initial_window - before)
        if not self._settled:
            self._settled = True
            self._connection.settled()
        self._outbox.emit(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MOST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: initial window too large")
            self._initial_window = value
        elif key == Setting.HEADER_TABLE_SIZE:
            self._outbox.limit_table(value)
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.LEAST_FRAME_BYTES <= value < 2**24:
                raise _protocol_error("SETTINGS: frame size out of range")
            self._outbox.limit_frames(value)
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise _protocol_error("SETTINGS: ENABLE_PUSH is 0 or 1")

    def _widen_all(self, change: int) -> None:
        for stream in self._streams.open.values():
            if stream.send_window + change > frames.MOST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: a window too large")
            self._outbox.widen(stream, change)

    def _on_window_update(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE: wanted 4 bytes")
        increment = frames.parse_long(payload) & frames.MOST_WINDOW
        if number and self._streams.is_idle(number):
            raise _protocol_error("WINDOW_UPDATE: on an idle stream")
        self._trifle()
        if number == 0:
            if not increment:
                raise _protocol_error("WINDOW_UPDATE: by nothing")
            self._outbox.widen_connection(increment)
            return
        stream = self._streams.open.get(number)
        if stream is None:
            return
        if not increment:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE: by nothing", number)
        if stream.send_window + increment > frames.MOST_WINDOW:
            raise Http2Error(
                ErrorCode.FLOW_CONTROL_ERROR, "a stream's window beyond 2^31 - 1", number
            )
        self._outbox.widen(stream, increment)

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise _protocol_error("PING: on a stream")
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING: wanted 8 bytes")
        if not flags & frames.ACK:
            self._trifle()
            self._outbox.emit(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif not self._connection.noticed(payload):
            self._trifle()

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if number:
            raise _protocol_error("GOAWAY: on a stream")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY: wanted at least 8 bytes")
        # The peer opens no more streams, and closes when it has its answers.
        self._trifle()

    # What is wrong with them.

    def _trifle(self) -> None:
        if self._trifles.spend():
            return
        # Most of them answer what was sent, which is no flood.
        frames_now = self._outbox.data_frames + self._streams.last
        self._trifles.earn(_TRIFLES_A_FRAME * (frames_now - self._frames_seen))
        self._frames_seen = frames_now
        if not self._trifles.spend():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that say nothing")

    def _fail_stream(self, error: Http2Error) -> None:
        self._connection.fail_stream(error)
        if not self._resets.spend():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams went wrong")


# Of the class and not of each reader, whose methods would refer to it until gc finds them.
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


def _check_length(stream: Stream) -> None:
    announced, got = stream.head.content_length, stream.body_bytes
    if announced is None or got == announced or (got < announced and not stream.remote_ended):
        return
    problem = f"content-length: {announced}, but {got} bytes came"
    raise Http2Error(ErrorCode.PROTOCOL_ERROR, problem, stream.id)


def _protocol_error(problem: str) -> Http2Error:
    return Http2Error(ErrorCode.PROTOCOL_ERROR, problem)


def _too_long() -> Http2Error:
    problem = f"header block: more than {MAX_BLOCK_BYTES} bytes, or in too many pieces"
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, problem)
