"""Addresses to listen on, taken exclusively or not at all."""

import errno
import socket

from service.errors import StartError


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
