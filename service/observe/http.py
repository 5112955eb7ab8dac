"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for probes."""

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
from service.hosts import host_and_port

_log = logging.getLogger(__name__)

#: Returns a page and its content type, for an Accept header.
Page = Callable[[str], tuple[bytes, str]]

_TEXT = "text/plain; charset=utf-8"
# Time limit of a connection, even with a slow peer; Prometheus's default timeout is the same.
_SECONDS = 10.0
# Maximum number of open connections on each address. One more closes the oldest, which is
# hardly ever a probe, since a probe takes milliseconds.
_MAX_CONNECTIONS = 32
_MAX_BODY_BYTES = 2**16
# Pause after a failed `accept`, as without file descriptors: the next one would fail as well.
_PAUSE_SECONDS = 0.1


class HttpServer:
    """Serves metrics and probes from its own threads, so they answer while the event loop is busy.

    Binds the port when it is created; answers from `start` on.

    Args:
        host: IP address to listen on, or a host name for all of its addresses.
        port: Port to listen on; 0 picks a free one.
        exposition: Returns the metrics page and its content type, for an Accept header.
        live: Returns liveness; False requests a restart.
        ready: Returns readiness; False means that no calls should be sent.

    Attributes:
        port: The port that is bound.

    Raises:
        StartError: The port is taken or the address is not this machine's.
    """

    def __init__(
        self,
        host: str,
        port: int,
        exposition: Page,
        live: Callable[[], bool],
        ready: Callable[[], bool],
    ):
        class Handler(_Handler):
            pages = {  # noqa: RUF012 - one class per server; never modified
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
        """Starts to answer."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """Stops answering and closes the port."""
        for server, thread in zip(self._servers, self._threads, strict=False):
            if thread.is_alive():
                server.shutdown()
                thread.join()
        for server in self._servers:
            server.close()

    def _bind(self, host: str, port: int, handler: type["_Handler"]) -> None:
        """Binds one port on every address of the host that belongs to this machine."""
        try:
            found = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as error:  # ValueError: no such name can be
            raise StartError(f"host: got {host!r}, which has no address ({error})") from error
        for family, *_, address in dict.fromkeys(found):
            try:
                server = _Server(family, (str(address[0]), port), handler)
            except OSError as error:
                if error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                    continue
                where = host_and_port(host, port)
                raise StartError(
                    f"http-port: cannot listen on {where}: {error.strerror}. Remedy: another "
                    "--http-port (0 picks a free one, off opens none)"
                ) from error
            self._servers.append(server)
            port = server.server_address[1]
        if not self._servers:
            raise StartError(f"host: got {host!r}, wanted an address of this machine")


def _probe(passes: Callable[[], bool], success: str, failure: str) -> Page:
    def page(_accept: str) -> tuple[bytes, str]:
        if not passes():
            raise _ProbeFailed(failure)
        return f"{success}\n".encode(), _TEXT

    return page


class _ProbeFailed(Exception):
    """A probe has failed; it is answered with status 503."""


class _Server(socketserver.TCPServer):
    """Listener on one address: a thread for each connection, limited in number and time."""

    # SO_REUSEADDR ignores connections in TIME_WAIT; on Linux it lets no two servers share a port.
    allow_reuse_address = True
    request_queue_size = 64
    server_address: tuple[str, int]

    def __init__(self, family: int, address: tuple[str, int], handler: type["_Handler"]):
        self.address_family = family
        self._lock = threading.Lock()
        # Monotonic time at which each open connection was accepted, oldest first.
        self._open: dict[socket.socket, float] = {}
        # Twice the connections, since the thread of a closed one takes a moment to end.
        self._slots = threading.BoundedSemaphore(2 * _MAX_CONNECTIONS)
        super().__init__(address, handler)

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            # [::] accepts IPv4 too, as the gRPC port does.
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accepts a connection."""
        try:
            return super().get_request()
        except OSError:
            time.sleep(_PAUSE_SECONDS)
            raise

    def close(self) -> None:
        """Closes the port and all connections."""
        self.server_close()
        self._close_oldest(lambda _: True)

    def service_actions(self) -> None:
        """Closes overdue connections; the base class calls it several times a second."""
        overdue = time.monotonic() - _SECONDS
        self._close_oldest(lambda connections: next(iter(connections.values())) < overdue)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._close_oldest(lambda connections: len(connections) >= _MAX_CONNECTIONS)
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        with self._lock:
            self._open[request] = time.monotonic()
        threading.Thread(
            target=self._answer, args=(request, client_address), name="http call", daemon=True
        ).start()

    def handle_error(self, *_: Any) -> None:
        _log.exception("an HTTP connection failed")

    def _answer(self, request: socket.socket, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except OSError:
            pass  # the peer has left, or was too slow and is closed
        except Exception:  # noqa: BLE001 - any bug is logged and the port stays open
            self.handle_error()
        finally:
            with self._lock:
                self._open.pop(request, None)
            self.shutdown_request(request)
            self._slots.release()

    def _close_oldest(self, condition: Callable[[dict[socket.socket, float]], bool]) -> None:
        """Closes connections, oldest first, while `condition` on the open ones holds.

        Shutting the socket down wakes the connection's thread, which then ends.
        """
        with self._lock:
            while self._open and condition(self._open):
                oldest = next(iter(self._open))
                del self._open[oldest]
                with suppress(OSError):
                    oldest.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    server_version = "latentserve"
    sys_version = ""
    pages: dict[str, Page]

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        if page is None:
            wanted = b"wanted /metrics, /healthz or /readyz\n"
            self._reply(HTTPStatus.NOT_FOUND, wanted)
            return
        try:
            body, content_type = page(self.headers.get("Accept", ""))
        except _ProbeFailed as reason:
            self._reply(HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode())
        except Exception:  # noqa: BLE001 - a bug is for the log, not for the caller
            _log.exception("%s failed", self.path[:100])
            self._reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error\n")
        else:
            self._reply(HTTPStatus.OK, body, content_type)

    do_HEAD = do_GET  # noqa: N815 - http.server's name

    def __getattr__(self, name: str) -> Any:
        """Resolves `do_<METHOD>`, which http.server looks up for every other HTTP method."""
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self._reply(HTTPStatus.METHOD_NOT_ALLOWED, b"wanted GET or HEAD\n", Allow="GET, HEAD")

    def _reply(
        self, status: HTTPStatus, body: bytes, content_type: str = _TEXT, **headers: str
    ) -> None:
        # Closing a socket with unread data resets the connection, and the reply may be lost.
        length = self.headers.get("Content-Length", "")
        if length.isdecimal():
            self.rfile.read(min(int(length[:9]), _MAX_BODY_BYTES))
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Logs nothing: probes come every second."""
