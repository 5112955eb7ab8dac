"""Receives the body of a request, within limits on its size, its memory and its time."""

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Final

from starlette.requests import ClientDisconnect, Request

from service.dispatch.dispatcher import Dispatcher
from service.dispatch.rpc import Rpc
from service.dispatch.status import too_large
from service.dispatch.uploads import Upload, Uploads
from service.engine.call import Call
from service.errors import DeadlineExceeded, NotReady
from service.gateway.errors import HttpError

# A body of which less than this has arrived for so long is given up: a peer that sends single bytes
# could hold its connection, and the memory of what it has sent, for ever.
_PROGRESS_BYTES: Final = 4096
_STALLED_SECONDS: Final = 30.0
_NOT_SENT: Final = "the rest of the request did not arrive while other calls lacked its memory"


class Receiving:
    """Bodies that are being received, over all connections.

    Args:
        dispatcher: Authenticates callers whose bodies are still arriving.
        max_bytes: Maximum bytes of one body that is held in memory.
        max_held_bytes: Maximum bytes of all unfinished ones.
    """

    def __init__(self, dispatcher: Dispatcher, max_bytes: int, max_held_bytes: int):
        self._dispatcher = dispatcher
        self._max_bytes = max_bytes
        self._bodies: set[_Body] = set()
        self._uploads = Uploads(max_held_bytes, self._unfinished)

    async def whole(self, request: Request, rpc: Rpc, call: Call) -> bytes:
        """Receives a whole body; that of a GET is empty.

        Args:
            request: The request.
            rpc: The method that it calls.
            call: The per-call context.

        Raises:
            CallFailed: The caller is refused, before a body of several parts is held in memory.
            TooLarge: The body is larger than a message may be.
            Overloaded: Other unfinished requests use up the memory.
            NotReady: The body did not go on while others lacked its memory.
            HttpError: The body does not arrive (408).
            ClientDisconnect: The caller has left.
        """
        if request.method != "POST":
            return b""
        stated = int(request.headers.get("content-length", "0"))
        self._refuse_large(stated)
        body = _Body(request)
        parts: list[bytes] = []
        size = 0
        self._bodies.add(body)
        try:
            while (part := await body.next()) is not None:
                if not parts and not body.ended:
                    self._dispatcher.precheck(rpc, call)
                size += len(part)
                self._refuse_large(size)
                # Just before it is counted, since at the end all that are here are subtracted.
                parts.append(part)
                self._uploads.hold(len(part), size)
            return b"".join(parts)
        finally:
            self._bodies.discard(body)
            self._uploads.hold(-sum(map(len, parts)), 0)

    async def parts(self, request: Request) -> AsyncIterator[bytes]:
        """Receives a body in parts as they arrive, of which none is held.

        Raises:
            DeadlineExceeded: The body does not arrive. Its cause says 408: within a call, an
                HttpError itself would be taken for a fault of the server.
            ClientDisconnect: The caller has left.
        """
        body = _Body(request)
        try:
            while (part := await body.next()) is not None:
                yield part
        except HttpError as error:
            raise DeadlineExceeded(str(error)) from error

    def close(self) -> None:
        """Stops the checks."""
        self._uploads.close()

    def _refuse_large(self, size: int) -> None:
        if size > self._max_bytes:
            raise too_large(size, self._max_bytes)

    def _unfinished(self) -> list[Upload]:
        return [(body.moved_at, body.give_up) for body in self._bodies]


class _Body:
    """One body that is being received.

    Attributes:
        ended: Whether all of it has been received.
        moved_at: When it last grew by some kilobytes, on the event loop's clock; the time that its
            parts were used for does not count.
    """

    def __init__(self, request: Request):
        self._receive = request.receive
        self._time = asyncio.get_running_loop().time
        self.ended = False
        self.moved_at = self._returned_at = self._time()
        self._moved = 0
        self._patience: asyncio.Timeout | None = None
        self._given_up = False

    async def next(self) -> bytes | None:
        """The next part; None after the last one."""
        while not self.ended:
            self.moved_at += self._time() - self._returned_at
            try:
                async with asyncio.timeout_at(self.moved_at + _STALLED_SECONDS) as patience:
                    self._patience = patience
                    message = await self._receive()
            except TimeoutError as error:
                raise self._stalled() from error
            self._patience = None
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            part: bytes = message.get("body", b"")
            self.ended = not message.get("more_body", False)
            self._moved += len(part)
            self._returned_at = self._time()
            if self._moved >= _PROGRESS_BYTES:
                self._moved, self.moved_at = 0, self._returned_at
            if part:
                return part
        return None

    def give_up(self) -> None:
        """Ends the upload, since other calls lack its memory."""
        self._given_up = True
        if self._patience is not None:
            self._patience.reschedule(self._time())

    def _stalled(self) -> Exception:
        if self._given_up:
            return NotReady(_NOT_SENT)
        return HttpError(
            HTTPStatus.REQUEST_TIMEOUT,
            f"body: less than {_PROGRESS_BYTES} bytes of it arrived in {_STALLED_SECONDS:g} s",
        )
