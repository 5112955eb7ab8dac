"""The HTTP port: /metrics, /healthz and /readyz, for probes and for Prometheus."""

import errno
import socket
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

from service.errors import StartError

#: Returns what Prometheus reads, and its content type, for an Accept header.
Exposition = Callable[[str], tuple[bytes, str]]

_TEXT = "text/plain; charset=utf-8"
# Who sends no request in this time is cut off; and no more than so many are heard at once.
_SECONDS = 5.0
_MOST_CONNECTIONS = 32


class HttpServer:
    """Answers in threads of its own, so that a busy event loop does not look dead.

    Args:
        host: Address to listen on.
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

        try:
            family, *_, address = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
        except OSError as error:
            raise StartError(f"host: got {host!r}, which has no address ({error})") from error
        kind = type("_Server", (_Server,), {"address_family": family})
        try:
            self._server = kind(address[:2], Handler)
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise StartError(
                    f"host: got {host!r}, wanted an address of this machine"
                ) from error
            raise StartError(
                f"http-port: cannot listen on {host}:{port}: {error.strerror}. Remedy: another "
                "--http-port (0 picks a free one, off is none)"
            ) from error
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever,
            name="http",
            kwargs={"poll_interval": 0.1},
            daemon=True,
        )

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def close(self) -> None:
        """Stops, and frees the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


def _probe(well: Callable[[], bool], yes: str, no: str) -> Callable[[str], tuple[bytes, str]]:
    def page(_accept: str) -> tuple[bytes, str]:
        if not well():
            raise _Unwell(no)
        return f"{yes}\n".encode(), _TEXT

    return page


class _Unwell(Exception):
    """The answer is 503."""


class _Server(HTTPServer):
    """A thread for each connection, within a bound."""

    # SO_REUSEADDR lets a server start again at once; on Linux it lets no two share a port.
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, *arguments: Any):
        self._slots = threading.BoundedSemaphore(_MOST_CONNECTIONS)
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._slots.acquire(blocking=False):
            self.shutdown_request(request)
            return
        threading.Thread(
            target=self._answer, args=(request, client_address), name="http call", daemon=True
        ).start()

    def _answer(self, request: Any, client_address: Any) -> None:
        try:
            self.finish_request(request, client_address)
        except Exception:  # noqa: BLE001 - whatever a caller does, the next one is heard
            pass
        finally:
            self.shutdown_request(request)
            self._slots.release()


class _Handler(BaseHTTPRequestHandler):
    timeout = _SECONDS
    server_version = "latentserve"
    sys_version = ""
    pages: dict[str, Exposition]

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        status, kind = HTTPStatus.OK, _TEXT
        if page is None:
            status, body = HTTPStatus.NOT_FOUND, b"wanted /metrics, /healthz or /readyz\n"
        else:
            try:
                body, kind = page(self.headers.get("Accept", ""))
            except _Unwell as reason:
                status, body = HTTPStatus.SERVICE_UNAVAILABLE, f"{reason}\n".encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the library's name

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._refuse
        raise AttributeError(name)

    def _refuse(self) -> None:
        self.send_response(HTTPStatus.METHOD_NOT_ALLOWED)
        self.send_header("Allow", "GET, HEAD")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """A probe every second is no news."""
