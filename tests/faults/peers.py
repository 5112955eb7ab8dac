"""Peers that cost a server something and never behave: each for the time of a `with` block."""

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from h2.exceptions import H2Error

from latentserve.v1 import latent_service_pb2 as pb
from tests.support.http2_client import LATENT, RawClient
from tests.support.http2_peer import headers, message, raw_frame, request_fields, settings_frame

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


@contextlib.contextmanager
def _in_background(work: Callable[[threading.Event], None], count: int) -> Iterator[None]:
    """Runs copies of `work` in threads until the block ends."""
    stopping = threading.Event()
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(work, stopping) for _ in range(count)]
        try:
            yield
        finally:
            stopping.set()
        for future in futures:
            future.result()


@contextlib.contextmanager
def unread_replies(
    addresses: Sequence[str], *, connections: int = 4, rows: int = 4096, seconds: float = 0.25
) -> Iterator[None]:
    """Peers that ask for large replies and never open their windows for them.

    Args:
        addresses: Addresses of the servers.
        connections: Number of connections to each.
        rows: Rows of each reply.
        seconds: Time between two requests on a connection.
    """
    body = message(pb.SampleRequest(count=rows, seed=1).SerializeToString())

    def hoard(address: str, stopping: threading.Event) -> None:
        while not stopping.is_set():
            with (
                # The server may reset a stream and close the connection at any time.
                contextlib.suppress(OSError, H2Error),
                RawClient(address, 0, grants=False) as peer,
            ):
                while not stopping.is_set() and not peer.closed:
                    peer.send(peer.open("Sample"), body, ends=True)
                    while peer.read(0.01) and not peer.closed:
                        pass
                    stopping.wait(seconds)

    with contextlib.ExitStack() as stack:
        for address in addresses:
            stack.enter_context(_in_background(partial(hoard, address), connections))
        yield


@contextlib.contextmanager
def unread_http_replies(
    gateways: Sequence[str], *, threads: int = 4, rows: int = 4096, seconds: float = 0.25
) -> Iterator[None]:
    """Peers that ask gateways for large replies and read none: each on a connection of its own.

    Args:
        gateways: Addresses of the gateways.
        threads: Number of threads for each, which open connections until the block ends.
        rows: Rows of each reply.
        seconds: Time between two connections of a thread.
    """
    path = f"/v1/models/mnist2d:sample?count={rows}&seed=1"
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nAccept: application/x-npy\r\n\r\n"

    def hoard(address: str, stopping: threading.Event) -> None:
        host, port = address.split(":")
        with contextlib.ExitStack() as stack:
            while not stopping.wait(seconds):
                sock = stack.enter_context(socket.socket())
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                sock.settimeout(5.0)
                with contextlib.suppress(OSError):  # the server may close the connection
                    sock.connect((host, int(port)))
                    sock.sendall(request.encode())

    with contextlib.ExitStack() as stack:
        for address in gateways:
            stack.enter_context(_in_background(partial(hoard, address), threads))
        yield


_BODY = message(b"\x08\x01" * 10_000)
#: Requests that slow senders begin: of gRPC, and of HTTP.
GRPC_REQUEST = b"".join(
    (
        _PREFACE,
        settings_frame(),
        headers(1, request_fields(LATENT + "Sample")),
        raw_frame(0, 0, 1, _BODY[:16_000]),
    )
)
HTTP_REQUEST = (
    b"POST /v1/models/mnist2d:encode HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/x-npy\r\nContent-Length: 20000\r\n\r\n"
) + bytes(16_000)


@contextlib.contextmanager
def slow_senders(
    addresses: Sequence[str], request: bytes = GRPC_REQUEST, *, connections: int = 8
) -> Iterator[None]:
    """Peers that send a request one byte at a time, which never ends.

    Args:
        addresses: Addresses of the servers.
        request: The request.
        connections: Number of connections to each.
    """

    def dribble(stopping: threading.Event) -> None:
        # Each has sent another part of it when it becomes slow: from nothing to half a message.
        peers = [
            (address, request[: len(request) * number // connections])
            for address in addresses
            for number in range(connections)
        ]
        with contextlib.ExitStack() as stack:
            sockets: list[tuple[socket.socket, int]] = []
            for address, start in peers:
                host, port = address.split(":")
                sock = stack.enter_context(socket.create_connection((host, int(port)), 5.0))
                sock.sendall(start)
                sockets.append((sock, len(start)))
            sent = 0
            while not stopping.wait(0.1):
                for sock, start_bytes in sockets:
                    with contextlib.suppress(OSError):  # the server may close the connection
                        sock.sendall(request[start_bytes + sent :][:1])
                sent += 1

    with _in_background(dribble, 1):
        yield


@contextlib.contextmanager
def many_connections(addresses: Sequence[str], count: int) -> Iterator[None]:
    """Peers that connect and say nothing.

    Args:
        addresses: Addresses of the servers.
        count: Number of connections to each.
    """
    with contextlib.ExitStack() as stack:
        for address in addresses:
            host, port = address.split(":")
            for _ in range(count):
                sock = stack.enter_context(socket.socket())
                sock.setblocking(False)
                # Whether it is taken is the server's concern.
                sock.connect_ex((host, int(port)))
        time.sleep(0.1)
        yield
