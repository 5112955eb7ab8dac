"""Files that the gateway serves to all: the explorer, the document of its API, and a page of it."""

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
_MEDIA_TYPES: Final = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".json": "application/json",
    ".svg": "image/svg+xml",
}
_NOTHING_ELSE: Final = "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
# Nothing but a style sheet of the gateway's own.
_PAGE_POLICY: Final = f"default-src 'none'; style-src 'self'; {_NOTHING_ELSE}"
# Scripts of the gateway's own, which call it, and cannot turn text into markup or code.
_EXPLORER_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob:; require-trusted-types-for 'script'; trusted-types 'none'; "
    f"{_NOTHING_ELSE}"
)


def pages(grpc_port: int) -> list[Route]:
    """Returns the routes of the files.

    Args:
        grpc_port: Port of gRPC, for the calls that the explorer shows.
    """
    port = f'name="grpc-port" content="{grpc_port}"'.encode()
    index = (_EXPLORER / "index.html").read_bytes()
    index = index.replace(b'name="grpc-port" content="50051"', port)
    return [
        _route("/openapi.json", _FOLDER / "openapi.json", _PAGE_POLICY),
        _route("/api", _FOLDER / "api.html", _PAGE_POLICY),
        _route("/api.css", _FOLDER / "api.css", _PAGE_POLICY),
        _route("/", _EXPLORER / "index.html", _EXPLORER_POLICY, index),
        *(
            _route(f"/explorer/{file.relative_to(_EXPLORER).as_posix()}", file, _EXPLORER_POLICY)
            for file in sorted(_EXPLORER.rglob("*"))
            if file.suffix in _MEDIA_TYPES and file.name != "index.html"
        ),
    ]


def _route(path: str, file: Path, policy: str, content: bytes | None = None) -> Route:
    served = file.read_bytes() if content is None else content
    tag = f'"{hashlib.sha256(served).hexdigest()[:32]}"'
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
        return Response(served, 200, headers, _MEDIA_TYPES[file.suffix])

    return Route(path, answer, methods=["GET"])
