"""The HTTP port: /metrics, /healthz and /readyz, for probes and for Prometheus."""

import errno
import logging
import socket
import socketserver
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from typing import Any

from service.errors import StartError

_log = logging.getLogger(__name__)

#: Returns what Prometheus reads, and its content type, for an Accept header.
Exposition = Callable[[str], tuple[bytes, str]]

_TEXT = "text/plain; charset=utf-8"
# Time for a whole connection, however slowly it talks; Prometheus itself waits no longer.
_SECONDS = 10.0
# Heard at once, on each address. One more, and the oldest is hung up on: a probe takes
# milliseconds and is hardly ever that one.
_MOST_CONNECTIONS = 32
_LONGEST_BODY = 2**16


class HttpServer:
    """Answers in threads of its own, so that a busy event loop does not look dead.

    Args:
        host: Name or address to listen on; each address that a name has.
        port: 0 picks a free one.
        exposition: Makes the metrics.
        live: Whether the process may go on; if not, it wants a restart.
        ready: Whether calls may come.

    Attributes:
        port: The port it is bound to.

    Raises:
        StartError: The port is taken or the address is not this machine's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        exposition: Exposition,
        live: Callable[[], bool],
        ready: Callable[[], bool],
    ):
        class Handler(_Handler):
            pages = {  # noqa: RUF012 - it has one owner
                "/metrics": exposition,
                "/healthz": _probe(live, "live", "not live, wanted a restart"),
                "/readyz": _probe(ready, "ready", "not ready"),
            }

        self._servers: list[_Server] = []
        self._threads: list[threading.Thread] = []
        try:
            self._bind(host, port, Handler)
        except BaseException:
            self.close()
            raise
        self.port: int = self._servers[0].server_address[1]
        self._threads = [
            threading.Thread(
                target=server.serve_forever, name="http", kwargs={"poll_interval": 0.1}, daemon=True
            )
            for server in self._servers
        ]

    def start(self) -> None:
        """Begins to answer."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops, and frees the port."""
        for server, thread in zip(self._servers, self._threads, strict=False):
            if thread.is_alive():
                server.shutdown()
                thread.join()
        for server in self._servers:
            server.close()

    def _bind(self, host: str, port: int, handler: type["_Handler"]) -> None:
        """Binds every address that the host has here, to one port, or none."""
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError as error:
            raise StartError(f"host: got {host!r}, which has no address ({error})") from error
        for family, *_, address in dict.fromkeys(found):
            try:
                server = _Server(family, (str(address[0]), port), handler)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                raise StartError(
                    f"http-port: cannot listen on {host}:{port}: {error.strerror}. Remedy: another "
                    "--http-port (0 picks a free one, off is none)"
                ) from error
            self._servers.append(server)
            port = server.server_address[1]
        if not self._servers:
            raise StartError(f"host: got {host!r}, wanted an address of this machine")


def _probe(well: Callable[[], bool], yes: str, no: str) -> Callable[[str], tuple[bytes, str]]:
    def page(_accept: str) -> tuple[bytes, str]:
        if not well():
            raise _Unwell(no)
        return f"{yes}\n".encode(), _TEXT

    return page


class _Unwell(Exception):
    """The answer is 503."""


class _Server(socketserver.TCPServer):
    """One address: a thread for each connection, bounded in number and in time."""

    # SO_REUSEADDR lets a server start again at once; on Linux it lets no two share a port.
    allow_reuse_address = True
    request_queue_size = 64
    server_address: tuple[str, int]

    def __init__(self, family: int, address: tuple[str, int], handler: type["_Handler"]):
        self.address_family = family
        self._lock = threading.Lock()
        # When each began to be heard, the oldest first.
        self._heard: dict[socket.socket, float] = {}
        # Those hung up on end soon, but not at once.
        self._slots = threading.BoundedSemaphore(2 * _MOST_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # [::] hears IPv4 too, as the gRPC port does.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def close(self) -> None:
        """Frees the port."""
        self.server_close()
        self._hang_up(lambda _heard: True)

    def service_actions(self) -> None:
        """Called several times a second."""
        overdue = time.monotonic() - _SECONDS
        self._hang_up(lambda heard: next(iter(heard.values())) < overdue)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._hang_up(lambda heard: len(heard) >= _MOST_CONNECTIONS)
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._heard[request] = time.monotonic()
        threading.Thread(
            target=self._answer, args=(request, client_address), name="http call", daemon=True
        ).start()

    def handle_error(self, *_: Any) -> None:
        _log.exception("an HTTP connection failed")

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # its caller has left, or was too slow
        except Exception:  # noqa: BLE001 - whatever it was, the next one is heard
            self.handle_error()
        finally:
            with self._lock:
                self._heard.pop(request, None)
            self.shutdown_request(request)
            self._slots.release()

    def _hang_up(self, wanted: Callable[[dict[socket.socket, float]], bool]) -> None:
        """Ends the oldest connections, as long as `wanted`; their threads wake up and leave."""
        with self._lock:
            while self._heard and wanted(self._heard):
                oldest = next(iter(self._heard))
                del self._heard[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server_version = "latentserve"
    sys_version = ""
    pages: dict[str, Exposition]

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            wanted = b"wanted /metrics, /healthz or /readyz\n"
            self._reply(HTTPStatus.NOT_FOUND, wanted)
            return
        try:
            body, kind = page(self.headers.get("Accept", ""))
        except _Unwell as reason:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode())
        except Exception:  # noqa: BLE001 - a bug is for the log, not for the caller
            _log.exception("%s failed", self.path[:100])
            self._reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n")
        else:
            self._reply(HTTPStatus.OK, body, kind)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def __getattr__(self, name: str) -> Any:
        """Any other method is looked for by its name."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self._reply(HTTPStatus.METHOD_NOT_ALLOWED, b"wanted GET or HEAD\n", Allow="GET, HEAD")

    def _reply(self, status: HTTPStatus, body: bytes, kind: str = _TEXT, **headers: str) -> None:
        # Closed with something unread, a connection is reset and the reply may be lost.
        length = self.headers.get("Content-Length", "")
        if length.isdecimal():
            self.rfile.read(min(int(length[:9]), _LONGEST_BODY))
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """A probe every second is no news."""
