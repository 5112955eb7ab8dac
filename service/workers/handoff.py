"""Connections on their way from the supervisor, which accepts them, to a worker."""

import asyncio
import socket
from collections import deque


class Dealing:
    """The way to one worker, for one of its lives.

    A connection stays open here until the worker has told that it has it: of one that dies
    before, the connections go to others, with all that has come on them. To be used in one
    event loop.

    Attributes:
        theirs: The worker's end, to be inherited by its process and closed here then.
    """

    def __init__(self) -> None:
        self._ours, self.theirs = socket.socketpair()
        self._ours.setblocking(False)
        self._given: deque[socket.socket] = deque()
        asyncio.get_running_loop().add_reader(self._ours, self._on_taken)

    def give(self, accepted: socket.socket) -> bool:
        """Sends a connection; returns whether it could be."""
        try:
            socket.send_fds(self._ours, [b"c"], [accepted.fileno()])
        except OSError:  # it has gone, or does not look any more
            return False
        self._given.append(accepted)
        return True

    def close(self) -> list[socket.socket]:
        """Ends it; returns the connections that were not taken."""
        asyncio.get_running_loop().remove_reader(self._ours)
        self._ours.close()
        self.theirs.close()
        left, self._given = list(self._given), deque()
        return left

    def _on_taken(self) -> None:
        """A byte for each that was."""
        try:
            taken = self._ours.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            taken = b""
        if not taken:
            asyncio.get_running_loop().remove_reader(self._ours)
        for _ in taken:
            self._given.popleft().close()
