"""Sockets that tests of ports open."""

import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def closing() -> Iterator[list[socket.socket]]:
    """A list of sockets, which are closed at the end."""
    opened: list[socket.socket] = []
    yield opened
    for sock in opened:
        sock.close()
