"""Listening sockets, bound exclusively or shared among our own worker processes."""

import errno
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from service.errors import StartError
from service.hosts import host_and_port

#: Maximum number of connections that the kernel queues for `accept`.
BACKLOG: Final = 1024


def free_addresses(host: str, port: int, option: str = "--port") -> list[str]:
    """Returns the addresses of a host on this machine, after a check that the port is free on each.

    grpcio by itself would start with only some of the addresses, while another server
    received the connections to the rest.

    Args:
        host: Host name or IP address.
        port: Port number; 0 for any free one.
        option: Command-line option that sets the port, for the error.

    Raises:
        StartError: The port is taken on an address, or none of the addresses is this machine's.
    """
    try:
        found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    except (OSError, ValueError) as error:  # ValueError: no such name can be, as one of 64 letters
        raise StartError(f"host: got {host!r}, which has no address ({error})") from error
    usable = []
    for family, kind, protocol, _, address in dict.fromkeys(found):
        try:
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:
                    _set_families(probe, str(address[0]))
                probe.bind(address)
        except OSError as error:
            if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue
            where = host_and_port(host, port)
            raise StartError(
                f"port: cannot listen on {where}: {error.strerror}. Remedy: another "
                f"{option} (0 picks a free one)"
            ) from error
        usable.append(str(address[0]))
    if not usable:
        raise StartError(f"host: got {host!r}, wanted an address of this machine")
    # [::] accepts IPv4 too.
    return [address for address in usable if "::" not in usable or address != "0.0.0.0"]


@dataclass(frozen=True)
class Shared:
    """Source of a worker's connections to the port that all workers share.

    Attributes:
        addresses: IP addresses to listen on with SO_REUSEPORT; unused if `channel` is set.
        channel: Unix socket over which the supervisor hands over accepted connections, or None.
    """

    addresses: Sequence[str]
    channel: socket.socket | None


def exclusive_sockets(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Binds one port on every address of a host; the sockets do not listen yet.

    Args:
        host: Host name or IP address.
        port: Port number; 0 for any free one, the same on all addresses.
        option: Command-line option that sets the port, for the error.

    Raises:
        StartError: The port is taken on one of the addresses.
    """
    sockets: list[socket.socket] = []
    try:
        for address in free_addresses(host, port, option):
            sockets.append(_exclusive(address, port))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        where = host_and_port(host, port)
        raise StartError(f"port: cannot listen on {where}: {error.strerror}") from error
    return sockets


def listen(sockets: Sequence[socket.socket]) -> None:
    """Begins to listen on bound sockets.

    Raises:
        StartError: Another server has begun to listen on the port since they were bound.
    """
    for sock in sockets:
        # Inherited by connections: in TIME_WAIT they then do not block the next server.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            sock.listen(BACKLOG)
        except OSError as error:
            where = host_and_port(*sock.getsockname()[:2])
            raise StartError(f"port: cannot listen on {where}: {error.strerror}") from error


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
            sockets.append(_exclusive(address, port, socket.SO_REUSEPORT))
            port = sockets[0].getsockname()[1]
    except OSError as error:
        for sock in sockets:
            sock.close()
        where = host_and_port(host, port)
        raise StartError(f"port: cannot share {where}: {error.strerror}") from error
    return sockets


def _exclusive(address: str, port: int, *options: int) -> socket.socket:
    try:
        # Without SO_REUSEADDR: another server is then refused even before this one listens.
        return bound(address, port, *options)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        # In use perhaps only by connections in TIME_WAIT, of a server that has just ended.
        return bound(address, port, *options, socket.SO_REUSEADDR)


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
            _set_families(result, address)
        result.bind((address, port))
    except BaseException:
        result.close()
        raise
    return result


def _set_families(sock: socket.socket, address: str) -> None:
    """Makes [::] (no other address) accept IPv4 as well, as grpcio and the HTTP port do."""
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address != "::"))


def shown_address(address: object) -> str:
    """A socket's address as in `ipv4:127.0.0.1:4711`."""
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"
