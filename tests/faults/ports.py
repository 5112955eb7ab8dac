"""Ports for servers that stop and come back on the same one."""

import random
import socket

# Below the ephemeral ports of Linux: while a server is away, no outgoing connection may take its
# port, least of all one that is being made to that very port and would reach itself.
_FIRST, _LAST = 18_000, 30_000


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 on which nothing listens."""
    found: list[int] = []
    while len(found) < count:
        port = random.randint(_FIRST, _LAST)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in found:
            found.append(port)
    return found
