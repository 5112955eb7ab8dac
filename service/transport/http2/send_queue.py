"""Send queue of one stream, with its flow-control window."""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Final

Chunk = bytes | memoryview

# Handlers wait while more than this is queued: one message is sent while the next is computed.
_MAX_QUEUED_BYTES: Final = 64 * 1024
# Fewer bytes sent do not count as progress: a peer that reads single bytes would hold a queue for
# ever.
_PROGRESS_BYTES: Final = 4096


class SendQueue:
    """DATA and trailers that one stream still has to send, and its send window.

    Args:
        stream_id: Identifier of the stream.
        window: Flow-control window: bytes of DATA that the peer accepts. SETTINGS may make it
            negative.
        on_sent: Called with the stream's identifier once END_STREAM has been sent.

    Attributes:
        chunks: DATA that waits for the window, the connection's window or its turn.
        queued_bytes: Length of all chunks.
        sent_bytes: Length of all DATA sent from the queue so far.
        moved_at: Time of the last progress, or of queueing if there was none, on the event loop's
            clock.
        trailers: Header block to send after the chunks, or None.
        in_turn: Whether the queue is in the outbox's round-robin.
    """

    __slots__ = (
        "_progress",
        "_waited",
        "_writable",
        "chunks",
        "in_turn",
        "moved_at",
        "on_sent",
        "queued_bytes",
        "sent_bytes",
        "stream_id",
        "trailers",
        "window",
    )

    def __init__(self, stream_id: int, window: int, on_sent: Callable[[int], None]):
        self.stream_id = stream_id
        self.window = window
        self.on_sent = on_sent
        self.chunks: deque[Chunk] = deque()
        self.queued_bytes = 0
        self.sent_bytes = 0
        self.moved_at = 0.0
        self.trailers: bytes | None = None
        self.in_turn = False
        self._progress = 0
        self._waited = False
        self._writable: asyncio.Future[None] | None = None

    async def wait_writable(self) -> None:
        """Waits while too much is queued (back-pressure)."""
        while self.queued_bytes > _MAX_QUEUED_BYTES:
            if self._writable is None:
                self._writable = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._writable)

    def add(self, chunk: Chunk, now: float) -> None:
        """Queues DATA.

        Args:
            chunk: At least one byte.
            now: The event loop's clock.
        """
        if not self.chunks:
            self.moved_at = now
            self._progress = 0
        self.chunks.append(chunk)
        self.queued_bytes += len(chunk)

    def sent(self, count: int, now: float) -> None:
        """Subtracts sent bytes from the queue's length and from the window.

        Args:
            count: Number of bytes.
            now: The event loop's clock.
        """
        self.window -= count
        self.queued_bytes -= count
        self.sent_bytes += count
        self._progress += count
        if self._progress >= _PROGRESS_BYTES:
            self._progress = 0
            self.moved_at = now
        if self.queued_bytes <= _MAX_QUEUED_BYTES and self._writable is not None:
            self._wake()

    def detach(self) -> None:
        """Copies the queued DATA, except at the first call, to free the array it is a view of.

        The array may hold a whole batch, of which this stream's rows are a small part. The first
        call copies nothing, since most DATA is sent soon.
        """
        if self._waited:
            self.chunks = deque(map(_detached, self.chunks))
        self._waited = True

    def clear(self) -> None:
        """Drops the queued DATA."""
        self.chunks.clear()
        self.queued_bytes = 0
        if self._writable is not None:
            self._wake()

    def _wake(self) -> None:
        assert self._writable is not None
        if not self._writable.done():
            self._writable.set_result(None)
        self._writable = None


def _detached(chunk: Chunk) -> Chunk:
    return bytes(chunk) if isinstance(chunk, memoryview) and type(chunk.obj) is not bytes else chunk
