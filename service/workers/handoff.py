"""Handoff of accepted connections from the supervisor to a worker, as file descriptors."""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Final

from service.net.acceptor import TAKEN

# A worker takes a connection within a few milliseconds. While it has not answered for this many, or
# for one since this long, other workers get the new connections.
_MOST_UNANSWERED: Final = 64
_SLOW_SECONDS: Final = 1.0
# Time without new connections for a worker that has no file descriptors left.
_FULL_SECONDS: Final = 1.0


class ConnectionHandoff:
    """Socket pair that carries accepted connections (SCM_RIGHTS) to one worker process.

    A connection stays open in this process until the worker answers for it with a byte. If the
    worker cannot take it, or dies first, the connection is given back for another worker, with all
    the data that the caller has already sent. Used from one event loop only.

    Args:
        given_back: Called with each connection that the worker has not taken.
        answered: Called after the worker has answered: it may have room for more connections.

    Attributes:
        worker_end: The worker's end; inherited by its process, then closed here.
    """

    def __init__(
        self, given_back: Callable[[socket.socket], None], answered: Callable[[], None]
    ) -> None:
        self._given_back, self._answered = given_back, answered
        self._end, self.worker_end = socket.socketpair()
        self._end.setblocking(False)
        # Connections that the worker has not answered for, oldest first, and when they were sent.
        self._unanswered: deque[tuple[socket.socket, float]] = deque()
        self._full_until = 0.0
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(self._end, self._on_answers)

    @property
    def waiting_seconds(self) -> float:
        """Seconds that the oldest unanswered connection has waited; 0 if there is none."""
        return self._loop.time() - self._unanswered[0][1] if self._unanswered else 0.0

    def send(self, connection: socket.socket) -> bool:
        """Sends a connection; returns False if the worker is gone, slow or full."""
        if (
            len(self._unanswered) >= _MOST_UNANSWERED
            or self.waiting_seconds > _SLOW_SECONDS
            or self._loop.time() < self._full_until
        ):
            return False
        try:
            socket.send_fds(self._end, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self._unanswered.append((connection, self._loop.time()))
        return True

    def close(self) -> list[socket.socket]:
        """Closes both ends; returns the connections that were not taken."""
        self._loop.remove_reader(self._end)
        self._end.close()
        self.worker_end.close()
        return self._untaken()

    def _untaken(self) -> list[socket.socket]:
        left = [connection for connection, _ in self._unanswered]
        self._unanswered.clear()
        return left

    def _on_answers(self) -> None:
        """Closes this process's copy of each connection that was taken; gives back the rest."""
        try:
            answers = self._end.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            answers = b""
        if not answers:
            # The worker's end is closed: connections that it has not answered for were not taken.
            self._loop.remove_reader(self._end)
            for connection in self._untaken():
                self._given_back(connection)
        for answer in answers:
            connection, _ = self._unanswered.popleft()
            if answer == TAKEN[0]:
                connection.close()
            else:
                self._full_until = self._loop.time() + _FULL_SECONDS
                self._given_back(connection)
        self._answered()
