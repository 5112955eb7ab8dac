"""Handoff of accepted connections from the supervisor to a worker, as file descriptors."""

import asyncio
import socket
from collections import deque


class ConnectionHandoff:
    """Socket pair that carries accepted connections (SCM_RIGHTS) to one worker process.

    A connection stays open here until the worker acknowledges it with a byte: if the worker
    dies first, the connection goes to another one, with all the data that the caller has
    already sent. Only for use in one event loop.

    Attributes:
        worker_end: The worker's end; inherited by its process, then closed here.
    """

    def __init__(self) -> None:
        self._end, self.worker_end = socket.socketpair()
        self._end.setblocking(False)
        self._unacknowledged: deque[socket.socket] = deque()
        asyncio.get_running_loop().add_reader(self._end, self._on_acknowledged)

    def send(self, connection: socket.socket) -> bool:
        """Sends a connection; returns False if the worker is gone or its buffer is full."""
        try:
            socket.send_fds(self._end, [b"c"], [connection.fileno()])
        except OSError:
            return False
        self._unacknowledged.append(connection)
        return True

    def close(self) -> list[socket.socket]:
        """Closes both ends; returns the connections that were not acknowledged."""
        asyncio.get_running_loop().remove_reader(self._end)
        self._end.close()
        self.worker_end.close()
        left, self._unacknowledged = list(self._unacknowledged), deque()
        return left

    def _on_acknowledged(self) -> None:
        """Closes this process's copy of a connection for each byte received."""
        try:
            acknowledgements = self._end.recv(4096)
        except BlockingIOError:
            return
        except OSError:
            acknowledgements = b""
        if not acknowledgements:
            asyncio.get_running_loop().remove_reader(self._end)
        for _ in acknowledgements:
            self._unacknowledged.popleft().close()
