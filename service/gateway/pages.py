"""Files that the gateway serves to all: the document of its API, and a page of it."""

from pathlib import Path
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

_FOLDER: Final = Path(__file__).parent
#: Files by address, their media types, and what they are.
FILES: Final = {
    "/openapi.json": ("openapi.json", "application/json", "This document."),
    "/api": ("api.html", "text/html", "The same as a page for people."),
    "/api.css": ("api.css", "text/css", "The style sheet of that page."),
}
_HEADERS: Final = {
    # Nothing but a style sheet of the gateway's own.
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


def pages() -> list[Route]:
    """Returns the routes of the files."""
    return [_route(path, name, media_type) for path, (name, media_type, _) in FILES.items()]


def _route(path: str, name: str, media_type: str) -> Route:
    content = (_FOLDER / name).read_bytes()

    async def answer(_request: Request) -> Response:
        return Response(content, 200, _HEADERS, media_type)

    return Route(path, answer, methods=["GET"])
