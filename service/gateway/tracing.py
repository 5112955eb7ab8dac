"""Spans of the gateway's requests, by OpenTelemetry's conventions for HTTP servers."""

import asyncio
from typing import Any, Final
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.gateway.exchange import EXCHANGE, Exchange
from service.observe.telemetry import Telemetry, describe

# What is asked again and again by machines has no spans, as gRPC's health service has none.
_UNTRACED: Final = ("/v1/metrics", "/v2/health/")
# The methods of RFC 9110 and RFC 5789; the name of a span has no other.
_METHODS: Final = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE")
)
# Longer texts of callers are cut: a head may have 32 KiB, and spans wait in memory until they are
# exported.
_MOST_CHARACTERS: Final = 1024


class Traced:
    """ASGI middleware that gives each request a span.

    Args:
        app: The application.
        telemetry: Exports the spans, if tracing is on.
    """

    def __init__(self, app: ASGIApp, telemetry: Telemetry):
        self._app = app
        self._telemetry = telemetry

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if not self._telemetry.traces or scope["path"].startswith(_UNTRACED):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        method = scope["method"] if scope["method"] in _METHODS else "HTTP"
        # Names are lower-case already.
        span = self._telemetry.http_span(method, dict(headers.items()), _known(scope, headers))

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                span.responded(message["status"])
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            span.failed("CANCELLED")
            raise
        except Exception as error:
            span.failed(type(error).__qualname__)
            raise
        finally:
            if "route" in scope:
                span.routed(_template(scope["route"]))
            exchange: Exchange | None = scope["state"].get(EXCHANGE)
            if exchange is not None:
                describe(span, exchange.call)
                if exchange.broken:
                    span.failed(exchange.broken)
            span.end()


def _known(scope: Scope, headers: Headers) -> dict[str, str | int]:
    """What is known of a request before it is answered."""
    known: dict[str, str | int] = {
        "http.request.method": scope["method"] if scope["method"] in _METHODS else "_OTHER",
        "url.path": scope["raw_path"].decode("latin-1")[:_MOST_CHARACTERS],
        "url.scheme": scope["scheme"],
        "network.protocol.version": scope["http_version"],
    }
    if scope["method"] not in _METHODS:
        known["http.request.method_original"] = scope["method"][:_MOST_CHARACTERS]
    if scope["query_string"]:
        known["url.query"] = scope["query_string"].decode("latin-1")[:_MOST_CHARACTERS]
    if scope["client"] is not None:
        known["client.address"] = known["network.peer.address"] = scope["client"][0]
        known["network.peer.port"] = scope["client"][1]
    if "user-agent" in headers:
        known["user_agent.original"] = headers["user-agent"][:_MOST_CHARACTERS]
    return {**known, **_server(headers.get("host", ""))}


def _server(host: str) -> dict[str, str | int]:
    """Name and port of the server, as the caller has them."""
    try:
        parts = urlsplit(f"//{host}")
        name, port = parts.hostname, parts.port
    except ValueError:
        return {}
    found: dict[str, str | int] = {"server.address": name[:_MOST_CHARACTERS]} if name else {}
    return found | ({"server.port": port} if name and port else {})


def _template(route: Any) -> str:
    """The path of a route, without the types of its parameters."""
    return str(route.path_format)
