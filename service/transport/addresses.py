"""Listening sockets, bound exclusively or shared among our own worker processes."""

import asyncio
import errno
import logging
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import StartError

_log = logging.getLogger(__name__)

#: Maximum number of connections that the kernel queues for `accept`.
BACKLOG: Final = 1024
# Pause after a failed `accept`, for example when file descriptors have run out.
_PAUSE_SECONDS = 0.1


def free_addresses(host: str, port: int, option: str = "--port") -> list[str]:
    """Returns the addresses of a host on this machine; the port is free on each of them.

    grpcio by itself would start with only some of the addresses, while another server
    received the connections to the rest.

    Args:
        host: Host name or IP address.
        port: Port number; 0 for any free one.
        option: Command-line option that sets the port, for the error.

    Raises:
        StartError: The port is taken on one of the addresses, or none is on this machine.
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
    """Source of a worker's connections to the port that all workers share.

    Attributes:
        addresses: IP addresses to listen on with SO_REUSEPORT; unused if `channel` is set.
        channel: Unix socket over which the supervisor hands over accepted connections, or None.
    """

    addresses: Sequence[str]
    channel: socket.socket | None


def exclusive_sockets(host: str, port: int) -> list[socket.socket]:
    """Binds one port on every address of a host; the sockets do not listen yet.

    Args:
        host: Host name or IP address.
        port: Port number; 0 for any free one, the same on all addresses.

    Raises:
        StartError: The port is taken on one of the addresses.
    """
    sockets: list[socket.socket] = []
    try:
        for address in free_addresses(host, port):
            sockets.append(bound(address, port, socket.SO_REUSEADDR))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StartError(f"port: cannot listen on {host}:{port}: {error.strerror}") from error
    return sockets


def shared_sockets(host: str, port: int) -> list[socket.socket]:
    """Reserves one port, on every address of a host, that only our own processes can share.

    The sockets are bound with SO_REUSEPORT but never listen; each worker binds and listens on
    its own.

    Args:
        host: Host name or IP address.
        port: Port number; 0 for any free one, the same on all addresses.

    Raises:
        StartError: The port is taken on one of the addresses, or this system cannot share
            ports.
    """
    if sys.platform != "linux":
        raise StartError(
            f"workers: got more than 1 on {sys.platform}, wanted 1: only Linux distributes "
            "connections among processes"
        )
    sockets: list[socket.socket] = []
    try:
        for address in free_addresses(host, port):
            sockets.append(_reserved(address, port))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        raise StartError(f"port: cannot share {host}:{port}: {error.strerror}") from error
    return sockets


def _reserved(address: str, port: int) -> socket.socket:
    try:
        # Without SO_REUSEADDR, so that another server, which binds without SO_REUSEPORT, is
        # refused even before a worker listens.
        return bound(address, port, socket.SO_REUSEPORT)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # In use perhaps only by TIME_WAIT connections of a single-process server that has ended.
        return bound(address, port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def bound(address: str, port: int, *options: int) -> socket.socket:
    """Returns a non-blocking TCP socket bound to one address.

    Args:
        address: IPv4 or IPv6 address.
        port: Port number; 0 for any free one.
        options: Socket options to turn on, such as SO_REUSEADDR or SO_REUSEPORT.

    Raises:
        OSError: The port is taken.
    """
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    result = socket.socket(family, socket.SOCK_STREAM)
    result.setblocking(False)
    try:
        for option in options:
            result.setsockopt(socket.SOL_SOCKET, option, 1)
        if family == socket.AF_INET6:
            result.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        result.bind((address, port))
    except BaseException:
        result.close()
        raise
    return result


async def accept_from(listening: socket.socket, take: Callable[[socket.socket], None]) -> None:
    """Accepts connections until it is cancelled.

    Args:
        listening: Non-blocking socket that listens.
        take: Called with each accepted socket.
    """
    loop = asyncio.get_running_loop()
    while True:
        try:
            accepted, _ = await loop.sock_accept(listening)
        except OSError as error:
            # Most likely too many open files; connections stay queued in the kernel.
            _log.warning("accept: %s", error.strerror)
            await asyncio.sleep(_PAUSE_SECONDS)
            continue
        take(accepted)
