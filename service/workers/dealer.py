"""Deals accepted connections to the workers, one after the other."""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

_log = logging.getLogger(__name__)

# Connections that no worker can take now: how many wait, how long, and how often they are
# offered again.
_MOST_WAITING: Final = 256
_WAIT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.25
_LOG_SECONDS: Final = 10.0


class Taker(Protocol):
    """A worker, as the dealer uses it."""

    @property
    def ready(self) -> bool:
        """Whether it answers calls, as far as is known."""

    def offer(self, connection: socket.socket) -> bool:
        """Hands off a connection; returns False if the worker cannot take one now."""


class Dealer:
    """Round robin over the workers that are ready, and over the others if none is.

    What no worker can take waits for a few seconds, and is closed after that.

    Args:
        takers: The workers.
    """

    def __init__(self, takers: Sequence[Taker]):
        self._takers = deque(takers)
        # Connections that wait, the oldest first, and when each is given up.
        self._waiting: deque[tuple[socket.socket, float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._next_log = 0.0
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def deal(self, connection: socket.socket) -> None:
        """Hands a connection to the next worker that can take it."""
        if self._offer(connection):
            return
        if self._closed or len(self._waiting) >= _MOST_WAITING:
            self._refuse(connection)
            return
        self._waiting.append((connection, self._loop.time() + _WAIT_SECONDS))
        if self._timer is None:
            self._timer = self._loop.call_later(_RETRY_SECONDS, self._retry)

    def deal_waiting(self) -> None:
        """Deals the connections that wait, as far as there is room for them now."""
        while self._waiting and self._offer(self._waiting[0][0]):
            self._waiting.popleft()

    def close(self) -> None:
        """Closes the connections that wait, and from now on those that no worker can take."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
        while self._waiting:
            self._refuse(self._waiting.popleft()[0])

    def _offer(self, connection: socket.socket) -> bool:
        anyone_ready = any(taker.ready for taker in self._takers)
        for _ in range(len(self._takers)):
            taker = self._takers[0]
            self._takers.rotate(-1)
            if (taker.ready or not anyone_ready) and taker.offer(connection):
                return True
        return False

    def _retry(self) -> None:
        """Deals what waits, and closes what has waited for too long."""
        self._timer = None
        self.deal_waiting()
        while self._waiting and self._waiting[0][1] <= self._loop.time():
            self._refuse(self._waiting.popleft()[0])
        if self._waiting:
            self._timer = self._loop.call_later(_RETRY_SECONDS, self._retry)

    def _refuse(self, connection: socket.socket) -> None:
        connection.close()
        if self._loop.time() >= self._next_log:
            self._next_log = self._loop.time() + _LOG_SECONDS
            _log.warning("connection: refused, no worker can take it")
