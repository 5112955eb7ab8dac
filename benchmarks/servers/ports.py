"""Finds a free port, for servers that cannot choose and report one themselves."""

import socket


def free_port() -> int:
    """A currently free port of 127.0.0.1."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port
