"""Addresses to listen on, taken exclusively or not at all."""

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
        channel: A Unix socket that connections come by which the supervisor has accepted,
            or None.
    """

    addresses: Sequence[str]
    channel: socket.socket | None


def exclusive_sockets(host: str, port: int) -> list[socket.socket]:
    """Binds every address that a host has to one port, or none; they do not listen yet.

    Raises:
        StartError: An address is taken.
    """
    found: list[socket.socket] = []
    try:
        for address in free_addresses(host, port):
            found.append(bound(address, port, socket.SO_REUSEADDR))
            port = found[0].getsockname()[1]
    except OSError as error:
        for each in found:
            each.close()
        raise StartError(f"port: cannot listen on {host}:{port}: {error.strerror}") from error
    return found


def shared_sockets(host: str, port: int) -> list[socket.socket]:
    """Binds a host's addresses so that processes of ours may share them, and nobody else.

    The sockets do not listen: they keep the port for those that do.

    Args:
        host: A name or an address.
        port: 0 for any, the same one on all of its addresses.

    Raises:
        StartError: An address is taken, or cannot be shared on this system.
    """
    if sys.platform != "linux":
        raise StartError(
            f"workers: got more than 1 on {sys.platform}, wanted 1: only Linux deals connections "
            "out among processes"
        )
    held: list[socket.socket] = []
    try:
        for address in free_addresses(host, port):
            held.append(_held(address, port))
            port = held[0].getsockname()[1]
    except OSError as error:
        for each in held:
            each.close()
        raise StartError(f"port: cannot share {host}:{port}: {error.strerror}") from error
    return held


def _held(address: str, port: int) -> socket.socket:
    try:
        # Without SO_REUSEADDR: what binds without SO_REUSEPORT, as another server looks
        # whether the port is free, is refused already while nobody listens yet.
        return bound(address, port, socket.SO_REUSEPORT)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # Of a server without workers that has just ended, connections linger on.
        return bound(address, port, socket.SO_REUSEPORT, socket.SO_REUSEADDR)


def bound(address: str, port: int, *options: int) -> socket.socket:
    """Binds one address.

    Args:
        address: Of IPv4 or IPv6.
        port: 0 for any.
        options: Those of the socket that are turned on: SO_REUSEADDR, SO_REUSEPORT.

    Raises:
        OSError: It is taken.
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
