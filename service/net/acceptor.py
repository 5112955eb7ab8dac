"""Connections to a port: accepted by this process, or handed off to it by the supervisor."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Final

from service.net.addresses import BACKLOG, listen
from service.net.descriptors import is_reserved

_log = logging.getLogger(__name__)

# Pause after a failed `accept`, for example when file descriptors have run out, and between two
# log lines about it.
_PAUSE_SECONDS: Final = 0.1
_LOG_SECONDS: Final = 10.0

#: A worker's answers when a connection is handed off to it: taken, or no descriptor left.
TAKEN: Final = b"t"
NOT_TAKEN: Final = b"n"


class Acceptor:
    """Source of the connections to one port.

    Args:
        take: Called with each connection, a non-blocking socket.
        sockets: Bound sockets of this process.
        channel: Non-blocking Unix socket over which the supervisor hands off connections, or None.
    """

    def __init__(
        self,
        take: Callable[[socket.socket], None],
        sockets: Sequence[socket.socket] = (),
        channel: socket.socket | None = None,
    ):
        self._take = take
        self._sockets = sockets
        self._channel = channel
        self._accepting: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begins to accept connections.

        Raises:
            StartError: Another server has begun to listen on the port since it was bound.
        """
        listen(self._sockets)
        self._accepting = [
            asyncio.create_task(accept_from(sock, self._take)) for sock in self._sockets
        ]
        if self._channel is not None:
            asyncio.get_running_loop().add_reader(self._channel, self._receive)

    async def close(self) -> None:
        """Closes the port; takes the connections that the kernel has accepted until then.

        Their callers may already have sent calls.
        """
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            with suppress(OSError):  # none is left
                for _ in range(BACKLOG if self._accepting else 0):
                    accepted, _address = sock.accept()
                    accepted.setblocking(False)
                    self._take(accepted)
            sock.close()
        if self._channel is not None:
            self._receive()
            self._close_channel()

    def _receive(self) -> None:
        assert self._channel is not None
        try:
            for accepted in handed_off(self._channel):
                self._take(accepted)
        except EOFError:
            self._close_channel()

    def _close_channel(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None


async def accept_from(listening: socket.socket, take: Callable[[socket.socket], None]) -> None:
    """Accepts connections until it is cancelled.

    A connection whose file descriptor is one of the reserved ones (`is_reserved`) is closed.

    Args:
        listening: Non-blocking socket that listens.
        take: Called with each accepted socket.
    """
    loop = asyncio.get_running_loop()
    next_log = 0.0
    while True:
        try:
            accepted, _ = await loop.sock_accept(listening)
        except OSError as error:
            problem, pause = f"accept: {error.strerror}", _PAUSE_SECONDS
        else:
            # One connection per loop iteration: a burst must not keep other work waiting.
            problem, pause = "", 0.0
            if is_reserved(accepted.fileno()):
                accepted.close()
                problem = "connection refused: too many open files"
            else:
                take(accepted)
        if problem and loop.time() >= next_log:
            next_log = loop.time() + _LOG_SECONDS
            _log.warning("%s", problem)
        await asyncio.sleep(pause)


def handed_off(channel: socket.socket) -> Iterator[socket.socket]:
    """Yields the connections that the supervisor has handed off; answers it with a byte for each.

    Args:
        channel: Non-blocking Unix socket to the supervisor.

    Raises:
        EOFError: The supervisor has closed its end.
    """
    while True:
        try:
            data, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        if not data:
            raise EOFError
        # Empty if this process has no free descriptor: the kernel drops the one that was sent.
        connections = [socket.socket(fileno=descriptor) for descriptor in descriptors]
        taken = bool(connections) and not is_reserved(connections[0].fileno())
        # The supervisor keeps its copy until this answer; if not taken, another worker gets it.
        with suppress(OSError):
            channel.send(TAKEN if taken else NOT_TAKEN)
        for connection in connections:
            if taken:
                connection.setblocking(False)
                yield connection
            else:
                connection.close()
