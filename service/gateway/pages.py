"""Files that the gateway serves to all: the document of its API, a page of it, and the explorer."""

import hashlib
from http import HTTPStatus
from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.gateway import caching

_FOLDER: Final = Path(__file__).parent
_EXPLORER: Final = _FOLDER / "explorer"
#: Files by address, their media types, and what they are.
FILES: Final = {
    "/openapi.json": ("openapi.json", "application/json", "This document."),
    "/api": ("api.html", "text/html", "The same as a page for people."),
    "/api.css": ("api.css", "text/css", "The style sheet of that page."),
}
_MEDIA_TYPES: Final = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
_NOTHING_ELSE: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Nothing but a style sheet of the gateway's own.
_PAGE_POLICY: Final = f"default-src 'none'; style-src 'self'; {_NOTHING_ELSE}"
# Scripts of the gateway's own, which call it, and cannot turn text into markup or code.
_EXPLORER_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; require-trusted-types-for 'script'; trusted-types 'none'; "
    f"{_NOTHING_ELSE}"
)
# The line of the explorer's page that tells the port of gRPC.
_PORT_LINE: Final = 'name="grpc-port" content="{}"'
_DEFAULT_PORT: Final = 50051


def pages() -> list[Route]:
    """Returns the routes of the files that belong to the API."""
    return [
        _route(path, (_FOLDER / name).read_bytes(), media_type, _PAGE_POLICY)
        for path, (name, media_type, _) in FILES.items()
    ]


def explorer(grpc_port: int) -> list[Route]:
    """Returns the routes of the explorer: its page at `/`, and the files of it.

    Args:
        grpc_port: Port of gRPC, for the calls that the page shows.
    """
    page = (_EXPLORER / "index.html").read_text()
    page = page.replace(_PORT_LINE.format(_DEFAULT_PORT), _PORT_LINE.format(grpc_port))
    return [
        _route("/", page.encode(), "text/html", _EXPLORER_POLICY),
        *(
            _route(
                f"/explorer/{file.relative_to(_EXPLORER).as_posix()}",
                file.read_bytes(),
                _MEDIA_TYPES[file.suffix],
                _EXPLORER_POLICY,
            )
            for file in sorted(_EXPLORER.rglob("*"))
            if file.suffix in _MEDIA_TYPES
        ),
    ]


def _route(path: str, content: bytes, media_type: str, policy: str) -> Route:
    tag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers = {
        "Cache-Control": "no-cache",
        "Content-Security-Policy": policy,
        "ETag": tag,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }

    async def answer(request: Request) -> Response:
        if caching.matches(request.headers.get("if-none-match", ""), tag):
            return Response(None, HTTPStatus.NOT_MODIFIED, headers)
        return Response(content, 200, headers, media_type)

    return Route(path, answer, methods=["GET"])
