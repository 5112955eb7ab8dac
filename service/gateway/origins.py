"""Who may call from a browser: checks of Origin and Host, before anything else is read.

A page of any origin can make its visitor's browser send requests to the visitor's own machine and
network. It cannot read the replies, unless the server says so (CORS) or the page's own name is made
to resolve to the server's address (DNS rebinding). Neither is to reach a model.
"""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.gateway.errors import HttpError
from service.gateway.exchange import http_problem

_LOOPBACK: Final = ("localhost", "127.0.0.1", "[::1]")


class Origins:
    """ASGI middleware that refuses requests of foreign pages, and to foreign names.

    Args:
        app: The application.
        origins: Origins besides the gateway's own whose pages may call, as in
            `https://example.org`; `*` for all.
        hosts: Names besides those of the loopback interface that Host may have; None if any may,
            since the gateway is there for other machines.
    """

    def __init__(self, app: ASGIApp, origins: Iterable[str], hosts: Iterable[str] | None):
        self._app = app
        self._origins = frozenset(origin.rstrip("/").lower() for origin in origins)
        self._hosts = None if hosts is None else frozenset((*_LOOPBACK, *map(str.lower, hosts)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Passes a request on, or refuses it: 400, 403 or 421."""
        if scope["type"] == "http":
            try:
                self._check(Headers(scope=scope))
            except HttpError as error:
                await http_problem(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _check(self, headers: Headers) -> None:
        if "transfer-encoding" in headers and "content-length" in headers:
            # Proxies disagree about where such a request ends (RFC 9112, section 6.3).
            detail = "content-length: got one beside transfer-encoding, wanted only one of them"
            raise HttpError(HTTPStatus.BAD_REQUEST, detail, {"Connection": "close"})
        host = headers.get("host", "")
        if self._hosts is not None and _name(host) not in self._hosts:
            detail = f"host: got {host[:100]!r}, wanted one of {', '.join(sorted(self._hosts))}"
            raise HttpError(HTTPStatus.MISDIRECTED_REQUEST, f"{detail} (see allowed-host)")
        origin = headers.get("origin")
        if origin is None or "*" in self._origins or origin.lower() in self._origins:
            return
        # The scheme is not compared, since a proxy may have ended TLS.
        if origin.lower().partition("://")[2] != host.lower():
            detail = f"origin: got {origin[:100]!r}, which may not call (see cors-origin)"
            raise HttpError(HTTPStatus.FORBIDDEN, detail)


def _name(host: str) -> str:
    """The name or address of a Host header, without its port."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return f"[{name}]" if ":" in name else name
    except ValueError:
        return ""
