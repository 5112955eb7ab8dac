"""Output of a connection: control frames at once; DATA by flow control, streams round-robin."""

import asyncio
from collections import deque
from typing import Final, Protocol

from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error
from service.transport.http2.headers import DEFAULT_TABLE_BYTES, no_table
from service.transport.http2.send_queue import Chunk, SendQueue

# Responses up to this size are sent at once instead of round-robin.
_AT_ONCE_BYTES: Final = 64 * 1024
# Maximum number of bytes of DATA written in one event-loop iteration.
_BYTES_PER_ITERATION: Final = 256 * 1024
# High-water mark of the transport's write buffer. Small, since a buffer below it is not counted,
# and there may be thousands of connections.
_WRITE_BUFFER_BYTES: Final = 64 * 1024
# Maximum DATA frame that we send: larger ones would only delay those of other streams.
_MAX_FRAME_BYTES: Final = 64 * 1024
# Reading is paused while more writes than this are unflushed.
_MAX_UNFLUSHED: Final = 1000
_LAST_HEADERS: Final = frames.END_HEADERS | frames.END_STREAM


class ReplyBytes(Protocol):
    """Counts the bytes of responses that wait to be sent, over all connections."""

    def hold(self, count: int) -> None:
        """Adds bytes that wait to be sent."""

    def release(self, count: int) -> None:
        """Subtracts bytes that were sent or dropped."""

    def has_room(self, count: int) -> bool:
        """Whether there is room for a response of `count` bytes that has to wait."""


class _Uncounted:
    """A `ReplyBytes` that counts nothing and always has room."""

    def hold(self, count: int) -> None:
        pass

    def release(self, count: int) -> None:
        pass

    def has_room(self, count: int) -> bool:  # noqa: ARG002 - the protocol's signature
        return True


UNCOUNTED: Final[ReplyBytes] = _Uncounted()


class Outbox:
    """Output queue of one connection.

    Args:
        loop: Event loop of the connection.
        replies: Counts the DATA that waits, here or in the transport's buffer.

    Attributes:
        data_frames: Number of DATA frames sent so far from the send queues of streams.
        moved_at: When DATA last left a send queue or the transport's buffer, on the event
            loop's clock.
        buffered_bytes: Bytes in the transport's buffer while writing is paused, else 0.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, replies: ReplyBytes = UNCOUNTED):
        self.data_frames = 0
        self.moved_at = 0.0
        self.buffered_bytes = 0
        self._loop = loop
        self._replies = replies
        self._transport: asyncio.Transport | None = None
        self._window = frames.DEFAULT_WINDOW
        self._frame_bytes = frames.DEFAULT_FRAME_BYTES
        self._table_bytes = DEFAULT_TABLE_BYTES
        # Dynamic table size update that the next header block has to begin with.
        self._size_update = b""
        self._unflushed: list[Chunk] = []
        self._flush_scheduled = False
        self._writing_paused = False
        self._reading_paused = False
        # Send queues with DATA that their own windows allow, in round-robin order.
        self._ready: deque[SendQueue] = deque()

    # Called by the connection.

    def attach(self, transport: asyncio.Transport) -> None:
        """Sets the transport to write to."""
        self._transport = transport
        transport.set_write_buffer_limits(high=_WRITE_BUFFER_BYTES)

    def pause_writing(self) -> None:
        """Holds all output back until `resume_writing`."""
        self._writing_paused = True
        self.moved_at = self._loop.time()
        self.sample_buffer()

    def resume_writing(self) -> None:
        """Resumes writing, and reading if it was paused."""
        self._writing_paused = False
        self._release_buffer()
        self._resume_reading()
        self._schedule()

    def limit_reading(self) -> None:
        """Pauses reading while too many responses are unflushed (back-pressure).

        One read may contain megabytes of tiny requests, whose responses are twice as long.
        """
        if (
            len(self._unflushed) > _MAX_UNFLUSHED
            and not self._reading_paused
            and self._transport is not None
        ):
            self._reading_paused = True
            self._transport.pause_reading()

    def emit(self, data: bytes) -> None:
        """Sends frames that are not subject to flow control."""
        self._unflushed.append(data)
        if not self._flush_scheduled:
            self._schedule()

    def sample_buffer(self) -> None:
        """Updates the count of bytes in the transport's buffer, if writing is paused."""
        if not self._writing_paused or self._transport is None:
            return
        size, before = self._transport.get_write_buffer_size(), self.buffered_bytes
        self.buffered_bytes = size
        if size > before:
            self._replies.hold(size - before)
        elif size < before:
            self.moved_at = self._loop.time()
            self._replies.release(before - size)

    def discard(self, queue: SendQueue) -> None:
        """Drops the DATA that a stream has queued."""
        if queue.queued_bytes:
            self._replies.release(queue.queued_bytes)
        queue.clear()
        if queue.in_turn:
            queue.in_turn = False
            self._ready.remove(queue)

    def close(self) -> None:
        """Writes unflushed frames, drops queued DATA, and detaches from the transport."""
        self._clear_ready()
        if self._transport is not None and not self._transport.is_closing():
            self._transport.writelines(self._unflushed)
        self._unflushed = []
        self._resume_reading()
        self._transport = None

    def abort(self) -> None:
        """Drops all output and detaches from the transport."""
        self._clear_ready()
        self._release_buffer()
        self._unflushed.clear()
        self._transport = None

    # The peer's settings and windows.

    def set_max_frame_size(self, size: int) -> None:
        """Applies the peer's SETTINGS_MAX_FRAME_SIZE, in bytes of payload."""
        self._frame_bytes = min(size, _MAX_FRAME_BYTES)

    def set_table_size(self, size: int) -> None:
        """Applies the peer's SETTINGS_HEADER_TABLE_SIZE, in bytes."""
        if size < self._table_bytes:
            # A smaller table has to be acknowledged by a size update (RFC 7541 section 4.2).
            self._table_bytes, self._size_update = 0, no_table()

    def widen_connection(self, increment: int) -> None:
        """Widens the connection's send window by the increment of a WINDOW_UPDATE.

        Raises:
            Http2Error: The window exceeds 2^31 - 1.
        """
        self._window += increment
        if self._window > frames.MAX_WINDOW:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "WINDOW_UPDATE: beyond 2^31 - 1")
        if self._ready:
            self._schedule()

    def widen(self, queue: SendQueue, change: int) -> None:
        """Widens a stream's send window; a negative change narrows it."""
        queue.window += change
        if not queue.in_turn:
            self._line_up(queue)

    # Called by streams.

    def respond(
        self, queue: SendQueue, headers: bytes, chunks: tuple[Chunk, ...], trailers: bytes
    ) -> bool:
        """Sends a whole response, in one write if the windows and other streams allow it.

        Returns:
            False if nothing was sent, because too many bytes of responses wait already.
        """
        size = sum(map(len, chunks))
        if (
            self._writing_paused
            or self._size_update
            or self._ready
            or size > self._window
            or size > queue.window
            or size > _AT_ONCE_BYTES
        ):
            if not self._replies.has_room(size):
                return False
            self.send_headers(queue.stream_id, headers)
            self.send_data(queue, chunks)
            self.send_trailers(queue, trailers)
            return True
        self._window -= size
        stream_id = queue.stream_id
        # As `frames.header` does it, which would be called three times for each response.
        pack = frames.HEADER.pack
        first, last = len(headers), len(trailers)
        before = pack(first >> 8, first & 255, frames.HEADERS, frames.END_HEADERS, stream_id)
        after = pack(last >> 8, last & 255, frames.HEADERS, _LAST_HEADERS, stream_id)
        if size <= self._frame_bytes:
            data = pack(size >> 8, size & 255, frames.DATA, 0, stream_id)
            self.emit(b"".join((before, headers, data, *chunks, after, trailers)))
        else:
            parts: list[Chunk] = [before, headers]
            max_bytes = self._frame_bytes
            body = b"".join(chunks)
            for start in range(0, size, max_bytes):
                length = min(max_bytes, size - start)
                parts.append(frames.header(length, frames.DATA, 0, stream_id))
                parts.append(body[start : start + max_bytes])
            self.emit(b"".join((*parts, after, trailers)))
        queue.on_sent(stream_id)
        return True

    def has_room(self, count: int) -> bool:
        """Whether a response of that many bytes may wait to be sent."""
        return self._replies.has_room(count)

    def send_headers(self, stream_id: int, block: bytes, *, end_stream: bool = False) -> None:
        """Sends a header block as a HEADERS frame, plus CONTINUATION frames if it is long."""
        flags = frames.END_STREAM if end_stream else 0
        frame_type = frames.HEADERS
        if self._size_update:
            block, self._size_update = self._size_update + block, b""
        for start in range(0, len(block), self._frame_bytes) or (0,):
            fragment = block[start : start + self._frame_bytes]
            if start + self._frame_bytes >= len(block):
                flags |= frames.END_HEADERS
            self.emit(frames.frame(frame_type, flags, stream_id, fragment))
            frame_type, flags = frames.CONTINUATION, 0

    def send_data(self, queue: SendQueue, chunks: tuple[Chunk, ...]) -> None:
        """Queues DATA of a stream, to be sent as the windows of stream and connection allow."""
        before, now = queue.queued_bytes, self._loop.time()
        for chunk in chunks:
            if len(chunk):
                queue.add(chunk, now)
        self._replies.hold(queue.queued_bytes - before)
        if not queue.in_turn:
            self._line_up(queue)

    def send_trailers(self, queue: SendQueue, block: bytes) -> None:
        """Sends trailers, which end the stream, after the stream's queued DATA."""
        if queue.chunks:
            queue.trailers = block
        else:
            self.send_headers(queue.stream_id, block, end_stream=True)
            queue.on_sent(queue.stream_id)

    def cut(self, queue: SendQueue, block: bytes) -> None:
        """Ends a stream now: sends the queued DATA that the windows allow, and drops the rest.

        Args:
            queue: Send queue of the stream.
            block: Trailers, which are not subject to flow control. If all DATA can be sent, the
                stream's own trailers are sent instead.
        """
        sent, now = 0, self._loop.time()
        while queue.chunks and queue.window > 0 and self._window > 0 and not self._writing_paused:
            sent += self._send_frame(queue, now)
        self._replies.release(sent)
        if queue.trailers is not None and not queue.chunks:
            block = queue.trailers
        self.discard(queue)
        self.send_headers(queue.stream_id, block, end_stream=True)
        queue.on_sent(queue.stream_id)

    # Flushes.

    def _schedule(self) -> None:
        # One flush per event-loop iteration: all frames emitted in it go out in one write.
        if not self._flush_scheduled and self._transport is not None:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        if self._transport is None or self._transport.is_closing():
            return
        if self._writing_paused:
            # Reading is paused too, to keep the held-back output small.
            self.limit_reading()
            return
        if self._ready:
            self._send_ready()
        unflushed, self._unflushed = self._unflushed, []
        if len(unflushed) == 1:
            self._transport.write(unflushed[0])
        elif unflushed:
            self._transport.writelines(unflushed)
        if not self._writing_paused:
            self._resume_reading()

    def _resume_reading(self) -> None:
        if self._reading_paused and self._transport is not None:
            self._reading_paused = False
            if not self._transport.is_closing():
                self._transport.resume_reading()

    def _send_ready(self) -> None:
        """Sends queued DATA round-robin, one frame of each stream in turn."""
        left, now = _BYTES_PER_ITERATION, self._loop.time()
        while self._ready and self._window > 0 and left > 0 and not self._writing_paused:
            queue = self._ready.popleft()
            queue.in_turn = False
            if queue.window <= 0:
                continue  # SETTINGS has narrowed the window meanwhile
            left -= self._send_frame(queue, now)
            if queue.chunks:
                self._line_up(queue)
            elif queue.trailers is not None:
                self.send_headers(queue.stream_id, queue.trailers, end_stream=True)
                queue.on_sent(queue.stream_id)
        if left < _BYTES_PER_ITERATION:
            self.moved_at = now
            self._replies.release(_BYTES_PER_ITERATION - left)
        if self._ready and self._window > 0 and not self._writing_paused:
            self._schedule()

    def _send_frame(self, queue: SendQueue, now: float) -> int:
        """Sends one frame of queued DATA; returns its length in bytes."""
        chunk = queue.chunks.popleft()
        size = min(len(chunk), self._frame_bytes, queue.window, self._window)
        if size < len(chunk):
            view = memoryview(chunk)
            queue.chunks.appendleft(view[size:])
            chunk = view[:size]
        self._unflushed += frames.header(size, frames.DATA, 0, queue.stream_id), chunk
        self.data_frames += 1
        self._window -= size
        queue.sent(size, now)
        return size

    def _release_buffer(self) -> None:
        if self.buffered_bytes:
            self._replies.release(self.buffered_bytes)
            self.buffered_bytes = 0

    def _line_up(self, queue: SendQueue) -> None:
        if queue.chunks and queue.window > 0:
            queue.in_turn = True
            self._ready.append(queue)
            self._schedule()

    def _clear_ready(self) -> None:
        for queue in self._ready:
            queue.in_turn = False
        self._ready.clear()
