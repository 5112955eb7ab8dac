"""Bytes out: control frames at once, and responses within the peer's windows, in turn."""

import asyncio
from collections import deque
from typing import Final

from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error
from service.transport.http2.headers import TABLE_BYTES, without_table
from service.transport.http2.stream import Chunk, Stream

# A response up to this size does not wait for its turn.
_AT_ONCE_BYTES: Final = 64 * 1024
# What one turn of the loop writes before it looks at others again.
_TURN_BYTES: Final = 256 * 1024
_WRITE_BUFFER_BYTES: Final = 512 * 1024
# Larger frames would only keep others waiting.
_MOST_FRAME_BYTES: Final = 64 * 1024
# Frames for a peer that does not read; with more of them it is not read from either.
_MOST_UNREAD: Final = 1000
_LAST_BLOCK: Final = frames.END_HEADERS | frames.END_STREAM


class Outbox:
    """What one connection sends.

    Args:
        loop: The connection's.

    Attributes:
        data_frames: How many frames of queued data have been sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop):
        self.data_frames = 0
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._send_window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.LEAST_FRAME_BYTES
        self._peer_table = TABLE_BYTES
        # What the next header block sent has to begin with.
        self._before_block = b""
        self._out: list[Chunk] = []
        self._flushing = False
        self._blocked = False
        self._paused = False
        # Streams with data that their own windows let through, in turns.
        self._sendable: deque[Stream] = deque()

    # What the connection calls.

    def open(self, transport: asyncio.Transport) -> None:
        """Begins to write to a transport."""
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def block(self) -> None:
        """The peer does not read as fast as it is written to."""
        self._blocked = True

    def unblock(self) -> None:
        """It has caught up."""
        self._blocked = False
        self._read_on()
        self._schedule()

    def ease(self) -> None:
        """Has nothing more read until what was read is answered.

        One turn of the loop may read megabytes: of tiny requests their answers are twice that.
        """
        if len(self._out) > _MOST_UNREAD and not self._paused and self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def emit(self, data: bytes) -> None:
        """Sends frames that no window holds back."""
        self._out.append(data)
        if not self._flushing:
            self._schedule()

    def forget(self, stream: Stream) -> None:
        """Drops what a stream has not sent yet."""
        stream.chunks.clear()
        stream.queued_bytes = 0
        stream.wake()
        if stream.in_turn:
            stream.in_turn = False
            self._sendable.remove(stream)

    def finish(self) -> None:
        """Writes all that no window holds back, drops the rest, and writes nothing any more."""
        self._leave_all()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(self._out)
        self._out = []
        self._read_on()
        self._transport = None

    def drop(self) -> None:
        """Lets go of everything."""
        self._leave_all()
        self._out.clear()
        self._transport = None

    # What the peer allows.

    def limit_frames(self, most: int) -> None:
        """The peer takes payloads of so many bytes."""
        self._frame_bytes = min(most, _MOST_FRAME_BYTES)

    def limit_table(self, most: int) -> None:
        """The peer keeps a table of so many bytes for our headers."""
        if most < self._peer_table:
            # Whoever takes less is to be told that less is used (RFC 7541 section 4.2).
            self._peer_table, self._before_block = 0, without_table()

    def widen_connection(self, increment: int) -> None:
        """The peer takes so many bytes more, over all streams.

        Raises:
            Http2Error: That is more than a window can be.
        """
        self._send_window += increment
        if self._send_window > frames.MOST_WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: beyond 2^31 - 1")
        if self._sendable:
            self._schedule()

    def widen(self, stream: Stream, change: int) -> None:
        """The peer takes so many bytes more, or less, of a stream."""
        stream.send_window += change
        if not stream.in_turn:
            self._line_up(stream)

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
        before = pack(len(head), frames.HEADERS, frames.END_HEADERS, number)
        after = pack(len(trailers), frames.HEADERS, _LAST_BLOCK, number)
        if size <= self._frame_bytes:
            data = pack(size, frames.DATA, 0, number)
            self.emit(b"".join((before, head, data, *chunks, after, trailers)))
        else:
            parts: list[Chunk] = [before, head]
            most = self._frame_bytes
            body = b"".join(chunks)
            for start in range(0, size, most):
                parts.append(pack(min(most, size - start), frames.DATA, 0, number))
                parts.append(body[start : start + most])
            self.emit(b"".join((*parts, after, trailers)))
        stream.ended()

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
            self.emit(frames.frame(kind, flags, stream.id, piece))
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
            stream.ended()

    # Turns of the loop.

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
            self.ease()
            return
        if self._sendable:
            self._pump()
        out, self._out = self._out, []
        if len(out) == 1:
            self._transport.write(out[0])
        elif out:
            self._transport.writelines(out)
        if not self._blocked:
            self._read_on()

    def _read_on(self) -> None:
        if self._paused and self._transport is not None:
            self._paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

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
            self.data_frames += 1
            room -= size
            self._send_window -= size
            stream.send_window -= size
            stream.sent(size)
            if stream.chunks:
                self._line_up(stream)
            elif stream.trailers is not None:
                self.send_head(stream, stream.trailers, end=True)
                stream.ended()
        if self._sendable and self._send_window > 0 and not self._blocked:
            self._schedule()

    def _line_up(self, stream: Stream) -> None:
        if stream.chunks and stream.send_window > 0:
            stream.in_turn = True
            self._sendable.append(stream)
            self._schedule()

    def _leave_all(self) -> None:
        for stream in self._sendable:
            stream.in_turn = False
        self._sendable.clear()
