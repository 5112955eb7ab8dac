"""Connections of the gateway: uvicorn's HTTP/1.1, with limits on time, and errors as problems."""

import asyncio
import json
import sys
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Final

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from service.dispatch.dispatcher import ENDED
from service.gateway.problems import PROBLEM

#: Maximum bytes of a request line with its headers.
MAX_HEAD_BYTES: Final = 32 * 1024
# Time for a request line with its headers, from the first byte; for a new connection, from its
# opening.
_HEAD_SECONDS: Final = 10.0


class HttpConnection(H11Protocol):
    """One connection.

    Args:
        config: Configuration of uvicorn.
        state: uvicorn's table of connections and tasks.
        lost: Called when the connection is closed.

    Attributes:
        opened_at: When it was opened, on the event loop's clock.
        task: The task that answers the request in progress, once there is a call.
        ended: Whether the server has ended that call.
    """

    def __init__(
        self, config: Config, state: ServerState, lost: Callable[["HttpConnection"], None]
    ):
        # The application finds its connection in the state of a request.
        super().__init__(config=config, server_state=state, app_state={"connection": self})
        self.opened_at = self.loop.time()
        self.task: asyncio.Task[Any] | None = None
        self.ended = False
        self._lost = lost
        self._head_timer: asyncio.TimerHandle | None = None

    @property
    def used(self) -> bool:
        """Whether a request has arrived."""
        return self.cycle is not None

    @property
    def busy(self) -> bool:
        """Whether a request is being received or answered."""
        return self.cycle is not None and not self.cycle.response_complete

    @property
    def closed(self) -> bool:
        """Whether the caller has left, or the connection is being closed."""
        return self.transport.is_closing() or (self.cycle is not None and self.cycle.disconnected)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Called by asyncio."""
        super().connection_made(transport)
        self._start_head_timer()

    def data_received(self, data: bytes) -> None:
        """Called by asyncio with received bytes."""
        super().data_received(data)
        if self.busy:
            self._stop_head_timer()
        elif self._head_timer is None and not self.transport.is_closing():
            self._start_head_timer()

    def on_response_complete(self) -> None:
        """Called once a reply has been written."""
        self.task = None
        super().on_response_complete()
        if not self.busy and not self.transport.is_closing() and self._awaits_more():
            self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by asyncio: the call in progress is cancelled."""
        self._stop_head_timer()
        super().connection_lost(exc)
        if self.task is not None:
            self.task.cancel()
        self._lost(self)

    def end(self) -> None:
        """Ends the request in progress: 503 if its reply has not begun, else the connection."""
        if self.busy and not self.cycle.response_started and self.task is not None:
            self.ended = True
            self.task.cancel(ENDED)
        else:
            self.abort()

    def abort(self) -> None:
        """Closes the connection at once."""
        self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Called by uvicorn when a request cannot be read; the status says more than 400 does."""
        error = sys.exception()
        status = HTTPStatus.BAD_REQUEST
        if isinstance(error, h11.RemoteProtocolError):
            status, msg = HTTPStatus(error.error_status_hint), f"{msg} {error}"
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.abort()  # a reply has begun
            return
        fields = {"type": "about:blank", "title": status.phrase, "status": status, "detail": msg}
        body = json.dumps(fields).encode()
        headers = [
            ("content-type", PROBLEM), ("content-length", str(len(body))), ("connection", "close"),
        ]  # fmt: skip
        events = [
            h11.Response(status_code=status, headers=headers, reason=status.phrase.encode()),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ]
        self.transport.write(b"".join(self.conn.send(event) or b"" for event in events))
        self.transport.close()

    def _awaits_more(self) -> bool:
        """Whether a part of the next request has arrived, or the last one was never read whole."""
        return bool(self.conn.trailing_data[0]) or self.conn.their_state is h11.SEND_BODY

    def _start_head_timer(self) -> None:
        self._stop_head_timer()
        self._head_timer = self.loop.call_later(_HEAD_SECONDS, self._head_expired)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_expired(self) -> None:
        if not self.busy:
            self.abort()
