"""Addresses to listen on, taken exclusively or not at all."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import StartError

_log = logging.getLogger(__name__)

#: Connections that wait to be accepted.
BACKLOG: Final = 1024
# How long nothing is accepted once files have run out.
_PAUSE_SECONDS = 0.1


def free_addresses(host: str, port: int, option: str = "--port") -> list[str]:
    """Returns the addresses of a host that this machine has and that are free.

    gRPC itself is content with one of several, and would leave the others to
    whatever else listens there.

    Args:
        host: A name or an address.
        port: 0 for any.
        option: How an operator sets another port.

    Raises:
        StartError: One is taken, or none is this machine's.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise StartError(f"host: got {host!r}, which has no address ({error})") from error
    usable = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                probe.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            raise StartError(
                f"port: cannot listen on {host}:{port}: {error.strerror}. Remedy: another "
                f"{option} (0 picks a free one)"
            ) from error
        usable.append(str(address[0]))
    if not usable:
        raise StartError(f"host: got {host!r}, wanted an address of this machine")
    return usable


@dataclass(frozen=True)
class Shared:
    """How one of several processes that serve on one port gets its connections.

    Attributes:
        addresses: Where to listen together with the others, if it does so.
        channel: Descriptor of a Unix socket that accepted connections come by.
    """

    addresses: Sequence[str]
    channel: int


def bound_sockets(host: str, port: int, *, shared: bool = False) -> list[socket.socket]:
    """Binds every address that a host has to one port, or none; they do not listen yet.

    Args:
        host: A name or an address.
        port: 0 for any, the same one on all of its addresses.
        shared: Let processes of ours bind them too (SO_REUSEPORT).

    Raises:
        StartError: An address is taken, or cannot be shared on this system.
    """
    found: list[socket.socket] = []
    try:
        for address in free_addresses(host, port):
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            each = socket.socket(family, socket.SOCK_STREAM)
            found.append(each)
            each.setblocking(False)
            each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                each.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            each.bind((address, port))
            port = each.getsockname()[1]
    except OSError as error:
        for each in found:
            each.close()
        raise StartError(f"port: cannot listen on {host}:{port}: {error.strerror}") from error
    return found


async def accept_from(listening: socket.socket, take: Callable[[socket.socket], None]) -> None:
    """Accepts connections until it is cancelled.

    Args:
        listening: A socket that listens and does not block.
        take: Given each connection.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(listening)
        except OSError as error:
            # Too many open files, most likely; those waiting wait on.
            _log.warning("accept: %s", error.strerror)
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        take(accepted)
