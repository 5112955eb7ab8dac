"""A port whose connections the supervisor accepts and deals to the workers."""

import socket
from collections.abc import Sequence

from service.net.acceptor import Acceptor
from service.workers.dealer import Dealer, Taker


class Door:
    """The sockets of one port, and the dealer of their connections.

    Args:
        sockets: Bound sockets.
        takers: The workers, as takers of this port's connections.
    """

    def __init__(self, sockets: Sequence[socket.socket], takers: Sequence[Taker]):
        self._dealer = Dealer(takers)
        self._acceptor = Acceptor(self.deal, sockets)

    def open(self) -> None:
        """Begins to accept connections.

        Raises:
            StartError: Another server has begun to listen on the port since it was bound.
        """
        self._acceptor.open()

    def deal(self, connection: socket.socket) -> None:
        """Hands a connection to a worker that can take it."""
        self._dealer.deal(connection)

    def deal_waiting(self) -> None:
        """Hands off connections that no worker could take before."""
        self._dealer.deal_waiting()

    async def close(self) -> None:
        """Closes the port, and hands off connections that the kernel has accepted until then."""
        await self._acceptor.close()
        self._dealer.close()
