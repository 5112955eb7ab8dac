"""One connection: frames in, requests out, and responses back within the peer's windows."""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from service.transport.http2 import frames
from service.transport.http2.budget import Budget
from service.transport.http2.frames import ErrorCode, Http2Error, Setting
from service.transport.http2.headers import (
    MAX_BLOCK_BYTES,
    MAX_HEADER_LIST_BYTES,
    TABLE_BYTES,
    HeaderDecoder,
    check_trailers,
    without_table,
)
from service.transport.http2.stream import NOBODY, Chunk, Stream

_log = logging.getLogger(__name__)

MAX_STREAMS: Final = 1000
#: Largest payload taken.
MAX_FRAME_BYTES: Final = 256 * 1024
_CONNECTION_WINDOW = 16 * 2**20
# A header block may come in pieces; those of a flood are many and small.
_MOST_BLOCK_FRAMES = 32
# A response up to this size does not wait for its turn.
_AT_ONCE_BYTES = 64 * 1024
# What one turn of the loop writes before it looks at others again.
_TURN_BYTES = 256 * 1024
_WRITE_BUFFER_BYTES = 512 * 1024
# Frames for a peer that does not read; with more of them it is not read from either.
_MOST_UNREAD = 1000
# Frames that say nothing, for each that says something: grpc-go pings and grants with every
# frame of data that it gets.
_TRIFLES_A_FRAME = 10
_HANDSHAKE_SECONDS = 10.0
# How long a peer has to see that a connection is being retired, to read what it has been
# sent before that is closed, and to see what it did wrong.
_NOTICE_SECONDS = 1.0
_LINGER_SECONDS = 10.0
_FAILED_SECONDS = 1.0
_RETIRING = b"retiring"
_HTTP_1: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC, which is HTTP/2.\n"
)


class Listener(Protocol):
    """Whom connections belong to."""

    def made(self, connection: "Connection") -> None:
        """There is a new connection."""

    def accept(self, stream: Stream) -> None:
        """Sets the receiver of a new request."""

    def lost(self, connection: "Connection") -> None:
        """A connection is no more."""


class Connection(asyncio.Protocol):
    """The server's end of one connection.

    Args:
        listener: Accepts the requests.
        max_streams: Most requests at a time.
    """

    #: What each stream may send before it is granted more.
    WINDOW: Final = 2**20

    def __init__(self, listener: Listener, max_streams: int = MAX_STREAMS):
        self.peer = ""
        self._listener = listener
        self._max_streams = max_streams
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, Stream] = {}
        self._last_stream = 0
        # Streams that we ended while their peer was still sending, oldest first.
        self._abandoned: dict[int, None] = {}
        self._headers = HeaderDecoder()
        self._peer_table = TABLE_BYTES
        # What the next header block sent has to begin with.
        self._before_block = b""
        self._welcomed = False
        self._greeted = False
        self._settled = False
        self._rest = bytearray()
        self._needed = 0
        self._block: list[bytes] = []
        self._block_stream = 0
        self._block_ends_stream = False
        self._send_window = frames.DEFAULT_WINDOW
        self._initial_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.LEAST_FRAME_BYTES
        self._receive_window = _CONNECTION_WINDOW
        self._to_grant = 0
        self._out: list[Chunk] = []
        self._flushing = False
        self._blocked = False
        self._paused = False
        # Streams with data that their own windows let through, in turns.
        self._sendable: deque[Stream] = deque()
        self._retiring = False
        self._refusing = False
        self._closing = False
        # Figures of nghttp2, which has them since CVE-2023-44487: resets cost us more than
        # they cost the peer, and so do frames that say nothing.
        self._resets = Budget(1000, 33)
        self._trifles = Budget(1000, 100)
        self._data_frames = 0
        self._frames_seen = 0
        self._handshake: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None
        self._handlers: tuple[Callable[[int, int, bytes], None], ...] = (
            self._on_data,
            self._on_headers,
            self._on_priority,
            self._on_rst_stream,
            self._on_settings,
            self._on_push_promise,
            self._on_ping,
            self._on_goaway,
            self._on_window_update,
            self._on_continuation,
        )

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the peer's preface; who speaks HTTP/1.1 is answered in that."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)
        self.peer = _peer(transport)
        _prepare(transport.get_extra_info("socket"))
        self._handshake = self._loop.call_later(_HANDSHAKE_SECONDS, self._abort)
        self._listener.made(self)

    def data_received(self, data: bytes) -> None:
        """Takes what came; whatever is wrong with it ends a stream or the connection."""
        if self._closing:
            return
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest = bytearray()
        try:
            at = self._parse(data)
        except Http2Error as error:
            self._fail(error.code, str(error))
        except Exception:  # noqa: BLE001 - a bug in one connection must not end the others
            _log.exception("connection of %s", self.peer)
            self._fail(ErrorCode.INTERNAL_ERROR, "internal error")
        else:
            if at < len(data):
                self._rest += data[at:]

    def pause_writing(self) -> None:
        """The peer does not read as fast as it is written to."""
        self._blocked = True

    def resume_writing(self) -> None:
        """It has caught up."""
        self._blocked = False
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()
        self._schedule()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Lets go of everything."""
        self._closing = True
        for timer in (self._handshake, self._ending):
            if timer is not None:
                timer.cancel()
        self._leave_all()
        streams, self._streams = self._streams, {}
        for stream in streams.values():
            self._lose(stream)
        self._out.clear()
        self._handlers = ()  # or they would refer to each other until gc finds them
        self._listener.lost(self)

    # What the server calls.

    def retire(self) -> None:
        """Lets requests in flight finish and takes no more (RFC 9113 section 6.8).

        The peer is warned first, so that what it has sent by then is still answered.
        """
        if self._retiring or self._closing:
            return
        self._retiring = True
        self._welcome()
        self._emit(frames.goaway(frames.LAST_STREAM, ErrorCode.NO_ERROR))
        self._emit(frames.frame(frames.PING, 0, 0, _RETIRING))
        self._end_in(_NOTICE_SECONDS, self._refuse_more)

    def close(self) -> None:
        """Cuts off what is in flight."""
        if not self._closing:
            self._fail(ErrorCode.NO_ERROR, "")

    # What streams call.

    def respond(
        self, stream: Stream, head: bytes, chunks: tuple[Chunk, ...], trailers: bytes
    ) -> None:
        """Sends a whole response; at once, where windows and others allow."""
        size = sum(map(len, chunks))
        if (
            stream.started
            or self._blocked
            or self._before_block
            or self._sendable
            or size > self._send_window
            or size > stream.send_window
            or size > _AT_ONCE_BYTES
        ):
            if not stream.started:
                stream.start(head)
            self.send_data(stream, chunks)
            self.send_trailers(stream, trailers)
            return
        self._send_window -= size
        number = stream.id
        pack = frames.head
        parts: list[Chunk] = [pack(len(head), frames.HEADERS, frames.END_HEADERS, number), head]
        if size <= self._frame_bytes:
            parts.append(pack(size, frames.DATA, 0, number))
            parts += chunks
        else:
            most = self._frame_bytes
            body = b"".join(chunks)
            for start in range(0, size, most):
                parts.append(pack(min(most, size - start), frames.DATA, 0, number))
                parts.append(body[start : start + most])
        parts.append(pack(len(trailers), frames.HEADERS, 0x5, number))
        parts.append(trailers)
        self._emit(b"".join(parts))
        self._ended(stream)

    def send_head(self, stream: Stream, block: bytes, *, end: bool) -> None:
        """Sends a header block, in as many frames as it takes."""
        flags = frames.END_STREAM if end else 0
        kind = frames.HEADERS
        if self._before_block:
            block, self._before_block = self._before_block + block, b""
        for start in range(0, len(block), self._frame_bytes) or (0,):
            piece = block[start : start + self._frame_bytes]
            if start + self._frame_bytes >= len(block):
                flags |= frames.END_HEADERS
            self._emit(frames.frame(kind, flags, stream.id, piece))
            kind, flags = frames.CONTINUATION, 0

    def send_data(self, stream: Stream, chunks: tuple[Chunk, ...]) -> None:
        """Queues some of a body."""
        for chunk in chunks:
            if len(chunk):
                stream.chunks.append(chunk)
                stream.queued_bytes += len(chunk)
        if not stream.in_turn:
            self._line_up(stream)

    def send_trailers(self, stream: Stream, block: bytes) -> None:
        """Sends the trailers once the body is out."""
        if stream.chunks:
            stream.trailers = block
        else:
            self.send_head(stream, block, end=True)
            self._ended(stream)

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a stream where it is."""
        if self._streams.pop(stream.id, None) is not None:
            self._forget(stream)
            self._abandon(stream.id)
            self._emit(frames.rst_stream(stream.id, code))
            self._close_if_retired()

    def grant(self, stream: Stream, count: int) -> None:
        """Lets a stream send more."""
        stream.receive_window += count
        self._emit(frames.window_update(stream.id, count))

    # Bytes in.

    def _parse(self, data: bytes) -> int:
        """Handles the frames that are complete and returns where the next one begins."""
        at, end = 0, len(data)
        if not self._greeted:
            at = self._greet(data)
            if not self._greeted:
                return at
        while end - at >= frames.HEAD_BYTES:
            length, kind, flags, number = frames.parse_head(data, at)
            if length > MAX_FRAME_BYTES:
                raise Http2Error(
                    ErrorCode.FRAME_SIZE_ERROR,
                    f"frame: {length} bytes, wanted at most {MAX_FRAME_BYTES}",
                )
            stop = at + frames.HEAD_BYTES + length
            if stop > end:
                self._needed = stop - at
                return at
            payload = data[at + frames.HEAD_BYTES : stop]
            at = stop
            if self._block_stream and (kind != frames.CONTINUATION or number != self._block_stream):
                raise _protocol_error("a header block was interrupted")
            if not self._settled and kind != frames.SETTINGS:
                raise _protocol_error("the first frame is not SETTINGS")
            if kind >= len(self._handlers):
                self._trifle()  # extensions are to be ignored
                continue
            try:
                self._handlers[kind](flags, number, payload)
            except Http2Error as error:
                if not error.stream:
                    raise
                self._fail_stream(error)
            if self._closing:
                return end
        self._needed = 0
        return at

    def _greet(self, data: bytes) -> int:
        preface = frames.PREFACE
        if data.startswith(preface):
            self._greeted = True
            self._welcome()
            return len(preface)
        if preface.startswith(data):
            self._needed = len(data) + 1
            return 0
        if data.split(b"\r\n", 1)[0].endswith((b"HTTP/1.1", b"HTTP/1.0")):
            self._emit(_HTTP_1)
            self._hang_up(_FAILED_SECONDS)
            return len(data)
        raise _protocol_error("no HTTP/2 connection preface")

    def _welcome(self) -> None:
        if self._welcomed:
            return
        self._welcomed = True
        self._emit(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: self._max_streams,
                    Setting.INITIAL_WINDOW_SIZE: self.WINDOW,
                    Setting.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
                    Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
                }
            )
        )
        self._emit(frames.window_update(0, _CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    def _on_data(self, flags: int, number: int, payload: bytes) -> None:
        size = len(payload)
        self._receive_window -= size
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self._credit(size)
        stream = self._known(number, frames.DATA)
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
            self._check_length(stream)
        if chunk:
            stream.receiver.data(chunk)
        elif not ends:
            self._trifle()
        if ends:
            stream.receiver.ended()

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
        if number <= self._last_stream:
            fields = self._headers.decode(block)
            stream = self._known(number, frames.HEADERS)
            if stream is None:
                self._trifle()
                return
            if not ends:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "trailers that end nothing", number)
            check_trailers(fields, number)
            stream.remote_ended = True
            self._check_length(stream)
            stream.receiver.ended()
            return
        self._last_stream = number
        # Whatever is refused, the table of the headers has to follow.
        head = self._headers.request(block, number)
        if self._refusing:
            raise Http2Error(ErrorCode.REFUSED_STREAM, "the connection is being retired", number)
        if len(self._streams) >= self._max_streams:
            raise Http2Error(ErrorCode.REFUSED_STREAM, "too many streams", number)
        stream = Stream(number, head, self, self._initial_window, self.WINDOW)
        stream.remote_ended = ends
        if head.content_length is not None:
            self._check_length(stream)
        self._streams[number] = stream
        self._listener.accept(stream)
        if ends:
            stream.receiver.ended()

    def _on_rst_stream(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "RST_STREAM: wanted 4 bytes")
        if self._is_idle(number):
            raise _protocol_error("RST_STREAM: on an idle stream")
        stream = self._streams.pop(number, None)
        if stream is None:
            self._trifle()
            return
        self._lose(stream)
        self._close_if_retired()
        if not self._resets.spend():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams were reset")

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
            assert self._handshake is not None
            self._handshake.cancel()
        self._emit(frames.frame(frames.SETTINGS, frames.ACK, 0))

    def _set(self, key: int, value: int) -> None:
        if key == Setting.INITIAL_WINDOW_SIZE:
            if value > frames.MOST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: initial window too large")
            self._initial_window = value
        elif key == Setting.HEADER_TABLE_SIZE:
            if value < self._peer_table:
                # Whoever takes less is to be told that less is used (RFC 7541 section 4.2).
                self._peer_table, self._before_block = 0, without_table()
        elif key == Setting.MAX_FRAME_SIZE:
            if not frames.LEAST_FRAME_BYTES <= value < 2**24:
                raise _protocol_error("SETTINGS: frame size out of range")
            # Larger frames would only keep others waiting.
            self._frame_bytes = min(value, 64 * 1024)
        elif key == Setting.ENABLE_PUSH and value > 1:
            raise _protocol_error("SETTINGS: ENABLE_PUSH is 0 or 1")

    def _on_ping(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise _protocol_error("PING: on a stream")
        if len(payload) != 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PING: wanted 8 bytes")
        if not flags & frames.ACK:
            self._trifle()
            self._emit(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif self._retiring and payload == _RETIRING:
            self._refuse_more()
        else:
            self._trifle()

    def _on_goaway(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if number:
            raise _protocol_error("GOAWAY: on a stream")
        if len(payload) < 8:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY: wanted at least 8 bytes")
        # The peer opens no more streams, and closes when it has its answers.
        self._trifle()

    def _on_window_update(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if len(payload) != 4:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "WINDOW_UPDATE: wanted 4 bytes")
        increment = frames.parse_long(payload) & frames.MOST_WINDOW
        if number and self._is_idle(number):
            raise _protocol_error("WINDOW_UPDATE: on an idle stream")
        self._trifle()
        if number == 0:
            if not increment:
                raise _protocol_error("WINDOW_UPDATE: by nothing")
            self._send_window += increment
            if self._send_window > frames.MOST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: beyond 2^31 - 1")
            if self._sendable:
                self._schedule()
            return
        stream = self._streams.get(number)
        if stream is None:
            return
        if not increment:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE: by nothing", number)
        if stream.send_window + increment > frames.MOST_WINDOW:
            raise Http2Error(
                ErrorCode.FLOW_CONTROL_ERROR, "a stream's window beyond 2^31 - 1", number
            )
        self._widen(stream, increment)

    def _widen(self, stream: Stream, change: int) -> None:
        stream.send_window += change
        if not stream.in_turn:
            self._line_up(stream)

    def _widen_all(self, change: int) -> None:
        for stream in self._streams.values():
            if stream.send_window + change > frames.MOST_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "SETTINGS: a window too large")
            self._widen(stream, change)

    def _on_priority(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        if not number:
            raise _protocol_error("PRIORITY: on no stream")
        if len(payload) != 5:
            # A stream that there is not cannot be reset.
            stream = number if number in self._streams else 0
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "PRIORITY: wanted 5 bytes", stream)
        self._trifle()

    def _on_push_promise(self, flags: int, number: int, payload: bytes) -> None:  # noqa: ARG002
        raise _protocol_error("PUSH_PROMISE: from a client")

    def _known(self, number: int, kind: int) -> Stream | None:
        """The stream of a frame; None where we ended it and the peer may not know yet."""
        stream = self._streams.get(number)
        if stream is not None:
            if stream.remote_ended:
                raise Http2Error(ErrorCode.STREAM_CLOSED, "a frame after the end", number)
            return stream
        if self._is_idle(number):
            raise _protocol_error(f"frame {kind}: on an idle stream")
        if number in self._abandoned:
            return None
        raise Http2Error(ErrorCode.STREAM_CLOSED, f"frame {kind}: on a stream that has ended")

    def _is_idle(self, number: int) -> bool:
        return number > self._last_stream or not number % 2

    def _check_length(self, stream: Stream) -> None:
        announced, got = stream.head.content_length, stream.body_bytes
        if announced is None or got == announced or (got < announced and not stream.remote_ended):
            return
        problem = f"content-length: {announced}, but {got} bytes came"
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, problem, stream.id)

    def _credit(self, count: int) -> None:
        """Grants the connection what it has used; how much a stream may send bounds it."""
        self._to_grant += count
        if self._to_grant >= _CONNECTION_WINDOW // 2:
            self._receive_window += self._to_grant
            self._emit(frames.window_update(0, self._to_grant))
            self._to_grant = 0

    def _trifle(self) -> None:
        if self._trifles.spend():
            return
        # Most of them answer what was sent, which is no flood.
        frames_now = self._data_frames + self._last_stream
        self._trifles.earn(_TRIFLES_A_FRAME * (frames_now - self._frames_seen))
        self._frames_seen = frames_now
        if not self._trifles.spend():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many frames that say nothing")

    # Bytes out.

    def _emit(self, data: bytes) -> None:
        self._out.append(data)
        if not self._flushing:
            self._schedule()

    def _schedule(self) -> None:
        # Once in each turn of the loop: what was answered in it goes out in one write.
        if not self._flushing and self._transport is not None:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flushing = False
        if self._transport is None or self._transport.is_closing():
            return
        if self._blocked:
            # What is held here is little, as long as nothing more is asked for.
            if len(self._out) > _MOST_UNREAD and not self._paused:
                self._paused = True
                self._transport.pause_reading()
            return
        if self._sendable:
            self._pump()
        out, self._out = self._out, []
        if not out:
            return
        if len(out) == 1:
            self._transport.write(out[0])
        else:
            self._transport.writelines(out)

    def _pump(self) -> None:
        """Turns queued data into frames, a frame of each stream in turn."""
        room = _TURN_BYTES
        out = self._out
        while self._sendable and self._send_window > 0 and room > 0 and not self._blocked:
            stream = self._sendable.popleft()
            stream.in_turn = False
            if stream.send_window <= 0:
                continue  # the peer has changed its mind
            chunk = stream.chunks.popleft()
            size = min(len(chunk), self._frame_bytes, stream.send_window, self._send_window)
            if size < len(chunk):
                view = memoryview(chunk)
                stream.chunks.appendleft(view[size:])
                chunk = view[:size]
            out.append(frames.head(size, frames.DATA, 0, stream.id))
            out.append(chunk)
            self._data_frames += 1
            room -= size
            self._send_window -= size
            stream.send_window -= size
            stream.sent(size)
            if stream.chunks:
                self._line_up(stream)
            elif stream.trailers is not None:
                self.send_head(stream, stream.trailers, end=True)
                receiver = stream.receiver
                self._ended(stream)
                receiver.gone()
        if self._sendable and self._send_window > 0 and not self._blocked:
            self._schedule()

    def _line_up(self, stream: Stream) -> None:
        if stream.chunks and stream.send_window > 0:
            stream.in_turn = True
            self._sendable.append(stream)
            self._schedule()

    # Ends.

    def _ended(self, stream: Stream) -> None:
        """The response is out."""
        stream.local_ended = True
        if self._streams.pop(stream.id, None) is None:
            return
        stream.receiver = NOBODY  # or the two would refer to each other until gc finds them
        if not stream.remote_ended:
            # Nothing that the peer may still send matters (RFC 9113 section 8.1).
            self._abandon(stream.id)
            self._emit(frames.rst_stream(stream.id, ErrorCode.NO_ERROR))
        self._close_if_retired()

    def _abandon(self, number: int) -> None:
        self._abandoned[number] = None
        if len(self._abandoned) > 2 * self._max_streams:
            del self._abandoned[next(iter(self._abandoned))]

    def _lose(self, stream: Stream) -> None:
        """The peer does not want the response any more."""
        receiver = stream.receiver
        self._forget(stream)
        receiver.gone()

    def _forget(self, stream: Stream) -> None:
        stream.receiver = NOBODY
        stream.local_ended = stream.remote_ended = True
        stream.chunks.clear()
        stream.queued_bytes = 0
        stream.wake()
        if stream.in_turn:
            stream.in_turn = False
            self._sendable.remove(stream)

    def _leave_all(self) -> None:
        for stream in self._sendable:
            stream.in_turn = False
        self._sendable.clear()

    def _fail_stream(self, error: Http2Error) -> None:
        stream = self._streams.pop(error.stream, None)
        if stream is not None:
            self._lose(stream)
        self._abandon(error.stream)
        self._emit(frames.rst_stream(error.stream, error.code))
        self._close_if_retired()
        if not self._resets.spend():
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many streams went wrong")

    def _fail(self, code: ErrorCode, problem: str) -> None:
        """Says why, and hangs up."""
        self._welcome()  # nothing may come before it
        if code is not ErrorCode.NO_ERROR:
            _log.debug("connection of %s: %s: %s", self.peer, code.name, problem)
        self._emit(frames.goaway(self._last_stream, code, problem))
        self._hang_up(_FAILED_SECONDS)

    def _hang_up(self, seconds: float) -> None:
        """Closes once what is written is out, or after so long."""
        self._closing = True
        assert self._transport is not None
        self._end_in(seconds, self._abort)
        self._leave_all()
        if not self._transport.is_closing():
            self._transport.writelines(self._out)
        self._out = []
        self._transport.close()

    def _refuse_more(self) -> None:
        if self._refusing or self._closing:
            return
        self._refusing = True
        self._emit(frames.goaway(self._last_stream, ErrorCode.NO_ERROR))
        self._close_if_retired()

    def _close_if_retired(self) -> None:
        if self._refusing and not self._streams and not self._closing:
            self._hang_up(_LINGER_SECONDS)

    def _abort(self) -> None:
        self._closing = True
        if self._transport is not None:
            self._transport.abort()

    def _end_in(self, seconds: float, then: Callable[[], Any]) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = self._loop.call_later(seconds, then)


def _protocol_error(problem: str) -> Http2Error:
    return Http2Error(ErrorCode.PROTOCOL_ERROR, problem)


def _too_long() -> Http2Error:
    problem = f"header block: more than {MAX_BLOCK_BYTES} bytes, or in too many pieces"
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, problem)


def _peer(transport: asyncio.Transport) -> str:
    address = transport.get_extra_info("peername")
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _prepare(sock: Any) -> None:
    """Small answers go out at once, and a peer that has vanished is found out."""
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
