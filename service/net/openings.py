"""Accepted connections until their TLS handshakes are done."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Final, Generic, TypeVar

from service.net.addresses import shown_address
from service.net.handshakes import FailedHandshakes
from service.net.tls import TlsFiles

_HANDSHAKE_SECONDS: Final = 10.0

P = TypeVar("P", bound=asyncio.Protocol)


class Openings(Generic[P]):
    """Connections that are being opened.

    Args:
        tls: Certificate and key; None for plain text.
        failed: Called with the reason of each TLS handshake that fails.
        make: Makes the protocol of a connection.
        opened: Called with the protocol of each connection that is open.
    """

    def __init__(
        self,
        tls: TlsFiles | None,
        failed: Callable[[str], None],
        make: Callable[[], P],
        opened: Callable[[P], None],
    ):
        self._tls = tls
        self._failed = FailedHandshakes(failed)
        self._make, self._opened = make, opened
        self._tasks: set[asyncio.Task[None]] = set()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, accepted: socket.socket) -> None:
        """Opens a connection.

        Args:
            accepted: Its non-blocking socket; closed if the handshake fails.
        """
        task = asyncio.create_task(self._open(accepted))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def cancel(self) -> None:
        """Gives up the handshakes that are not done."""
        for task in self._tasks:
            task.cancel()

    async def _open(self, accepted: socket.socket) -> None:
        context = None if self._tls is None else self._tls.ssl_context()
        peer = "" if context is None else _peer(accepted)
        protocol = self._make()
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                lambda: protocol,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _HANDSHAKE_SECONDS,
            )
        except (TimeoutError, OSError, EOFError) as error:
            accepted.close()
            if context is not None:
                self._failed.add(peer, error)
        else:
            self._opened(protocol)


def _peer(accepted: socket.socket) -> str:
    with suppress(OSError):  # the client may have left already
        return shown_address(accepted.getpeername())
    return "unknown"
