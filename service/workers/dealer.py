"""Distributes accepted connections over the workers, round robin."""

import asyncio
import logging
import socket
from bisect import insort
from collections import deque
from collections.abc import Sequence
from operator import itemgetter
from typing import Final, Protocol
from weakref import WeakKeyDictionary

_log = logging.getLogger(__name__)

# For connections that no worker can take now: how many may wait, for how long, and the interval at
# which they are offered again.
_MOST_WAITING: Final = 256
_WAIT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.25
_LOG_SECONDS: Final = 10.0


class Taker(Protocol):
    """Interface of a worker to the dealer."""

    @property
    def ready(self) -> bool:
        """Whether the worker answers calls, as last reported."""

    def offer(self, connection: socket.socket) -> bool:
        """Hands off a connection; returns False if the worker cannot take one now."""


class Dealer:
    """Round robin over the workers that are ready, and over the others if none is.

    A connection that no worker can take waits for a few seconds, and is then closed. One that a
    worker gives back waits for the rest of its seconds.

    Args:
        takers: The workers.
    """

    def __init__(self, takers: Sequence[Taker]):
        self._takers = deque(takers)
        # Waiting connections, each with the time at which it is closed, earliest first.
        self._waiting: deque[tuple[socket.socket, float]] = deque()
        # The same time of each connection that has ever waited: a worker may give it back.
        self._deadlines: WeakKeyDictionary[socket.socket, float] = WeakKeyDictionary()
        self._timer: asyncio.TimerHandle | None = None
        self._next_log = 0.0
        self._closed = False
        self._loop = asyncio.get_running_loop()

    def deal(self, connection: socket.socket) -> None:
        """Hands a connection to the next worker that can take it; if none can, it waits."""
        if self._offer(connection):
            return
        now = self._loop.time()
        closed_at = self._deadlines.setdefault(connection, now + _WAIT_SECONDS)
        if self._closed or len(self._waiting) >= _MOST_WAITING or closed_at <= now:
            self._refuse(connection)
            return
        insort(self._waiting, (connection, closed_at), key=itemgetter(1))
        if self._timer is None:
            self._timer = self._loop.call_later(_RETRY_SECONDS, self._retry)

    def deal_waiting(self) -> None:
        """Hands waiting connections to workers, oldest first, until none can take one."""
        while self._waiting and self._offer(self._waiting[0][0]):
            self._waiting.popleft()

    def close(self) -> None:
        """Closes the waiting connections, and from then on each one that no worker can take."""
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
        """Offers the waiting connections again, and closes those that have waited for too long."""
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
