"""Sends replies piece by piece, and counts what their callers have not read yet."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.dispatch.unread import Capacity, Unread, UnreadReplies

# Length of the pieces in which a reply is handed to its connection, which takes the next one once
# the caller has read most of the last.
_PIECE_BYTES: Final = 64 * 1024


class Sending:
    """Replies that wait to be read, over all connections.

    Args:
        capacity: Counts and limits the bytes of replies until their callers have read them.
    """

    def __init__(self, capacity: Capacity):
        self.has_room = capacity.has_room
        self.unread = UnreadReplies(capacity, self._unread)
        self._open: set[Pieces] = set()

    def pieces(self, drop: Callable[[], None]) -> "Pieces":
        """Returns the counter of a reply that is about to be sent.

        Args:
            drop: Called if the reply is not read while other calls lack its memory.
        """
        pieces = Pieces(self.unread, drop, self._open.discard)
        self._open.add(pieces)
        return pieces

    def close(self) -> None:
        """Stops the checks."""
        self.unread.close()

    def _unread(self) -> Iterator[Unread]:
        for pieces in self._open:
            # A stream between two of its messages waits for nobody: nothing is gained by its end.
            if pieces.held:
                yield pieces.moved_at, pieces.held, pieces.drop


class Pieces:
    """Counts the bytes of one reply that have not been sent yet.

    Attributes:
        held: Bytes that wait.
        moved_at: When a piece was last taken, or began to wait after nothing had, on the event
            loop's clock.
        drop: Gives the reply up.
    """

    def __init__(
        self,
        unread: UnreadReplies,
        drop: Callable[[], None],
        closed: Callable[["Pieces"], None],
    ):
        self.held = 0
        self.drop = drop
        self._unread = unread
        self._closed = closed
        self._time = asyncio.get_running_loop().time
        self.moved_at = self._time()

    async def send(self, send: Send, body: bytes, *, last: bool) -> None:
        """Sends a part of the reply's body; waits while the caller does not read.

        Args:
            send: Of ASGI.
            body: The part.
            last: Whether it is the last one.
        """
        view = memoryview(body)
        self._hold(len(view))
        while len(view) > _PIECE_BYTES:
            await self._send(send, view[:_PIECE_BYTES], more=True)
            view = view[_PIECE_BYTES:]
        await self._send(send, view, more=not last)

    def close(self) -> None:
        """Forgets the reply, sent or not."""
        self._hold(-self.held)
        self._closed(self)

    async def _send(self, send: Send, piece: memoryview, *, more: bool) -> None:
        await send({"type": "http.response.body", "body": bytes(piece), "more_body": more})
        self.moved_at = self._time()
        self._hold(-len(piece))

    def _hold(self, change: int) -> None:
        if not self.held:
            self.moved_at = self._time()
        self.held += change
        if change > 0:
            self._unread.hold(change)
        elif change < 0:
            self._unread.release(-change)


class Counted(Response):
    """A reply whose bytes count as in flight until its caller has read them.

    Args:
        content: The body.
        status: Status code.
        headers: Headers besides length and type.
        media_type: Media type of the body.
        sending: Counts the bytes.
        drop: Called if the reply is not read while other calls lack its memory.
    """

    def __init__(
        self,
        content: bytes,
        status: int,
        headers: Mapping[str, str],
        media_type: str,
        sending: Sending,
        drop: Callable[[], None],
    ):
        super().__init__(content, status, dict(headers), media_type)
        self._sending = sending
        self._drop = drop

    async def __call__(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        """Sends the reply."""
        pieces = self._sending.pieces(self._drop)
        start: dict[str, Any] = {
            "type": "http.response.start",
            "status": self.status_code,
            "headers": self.raw_headers,
        }
        try:
            await send(start)
            await pieces.send(send, bytes(self.body), last=True)
        finally:
            pieces.close()
