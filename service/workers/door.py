"""A port whose connections the supervisor accepts and deals to the workers."""

import asyncio
import socket
from collections.abc import Sequence
from contextlib import suppress

from service.net.addresses import BACKLOG, accept_from, listen
from service.workers.dealer import Dealer, Taker


class Door:
    """The sockets of one port, and the dealer of their connections.

    Args:
        sockets: Bound sockets.
        takers: The workers, as takers of this port's connections.
    """

    def __init__(self, sockets: Sequence[socket.socket], takers: Sequence[Taker]):
        self._sockets = sockets
        self._dealer = Dealer(takers)
        self._accepting: list[asyncio.Task[None]] = []

    def open(self) -> None:
        """Begins to accept connections.

        Raises:
            StartError: Another server has begun to listen on the port since it was bound.
        """
        listen(self._sockets)
        self._accepting = [
            asyncio.create_task(accept_from(sock, self.deal)) for sock in self._sockets
        ]

    def deal(self, connection: socket.socket) -> None:
        """Hands a connection to a worker that can take it."""
        self._dealer.deal(connection)

    def deal_waiting(self) -> None:
        """Hands off connections that no worker could take before."""
        self._dealer.deal_waiting()

    async def close(self) -> None:
        """Closes the port, and hands off connections that the kernel has accepted until then."""
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            with suppress(OSError):  # none is left, or it does not listen
                for _ in range(BACKLOG if self._accepting else 0):
                    self.deal(sock.accept()[0])
            sock.close()
        self._dealer.close()
