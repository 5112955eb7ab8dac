"""Requests to a gateway, over a connection of their own, whatever proxies the environment names."""

import http.client
import io
import json
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode, urlsplit

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """A reply: its status, its headers by lower-case name, and its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def media(self) -> str:
        """Its media type."""
        return self.headers.get("content-type", "")

    def json(self) -> Any:
        """Its body, which is JSON."""
        assert self.media in ("application/json", "application/problem+json"), self
        return json.loads(self.body)

    def npy(self) -> NDArray[Any]:
        """Its body, which is an npy file."""
        assert self.media == "application/x-npy", self
        return np.load(io.BytesIO(self.body))  # type: ignore[no-any-return]

    def npz(self) -> dict[str, NDArray[Any]]:
        """Its body, which is an npz file."""
        assert self.media == "application/x-npz", self
        return dict(np.load(io.BytesIO(self.body)))

    def picture(self) -> NDArray[np.uint8]:
        """Its body, which is a picture: [H, W] or [H, W, 3]."""
        assert self.media.startswith("image/"), self
        return np.asarray(Image.open(io.BytesIO(self.body)))

    def problem(self, status: int, *texts: str) -> Any:
        """Its problem; checks its status, and that its detail has the texts."""
        assert self.status == status, self
        assert self.media == "application/problem+json", self
        problem = self.json()
        assert problem["status"] == status
        for text in texts:
            assert text in problem["detail"], problem
        return problem


class Caller:
    """Calls a gateway.

    Args:
        origin: Its address, as in http://127.0.0.1:8000.
        headers: Headers of every request.
        context: Verifies the server's certificate; for https.
    """

    def __init__(
        self,
        origin: str,
        headers: Mapping[str, str] | None = None,
        context: ssl.SSLContext | None = None,
    ):
        self.origin = origin
        self._headers = dict(headers or {})
        self._context = context

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        parts = urlsplit(self.origin)
        assert parts.hostname
        assert parts.port
        return parts.hostname, parts.port

    def connect(self) -> http.client.HTTPConnection:
        """A new connection."""
        host, port = self.address
        if self._context is None:
            return http.client.HTTPConnection(host, port, timeout=_SECONDS)
        return http.client.HTTPSConnection(host, port, timeout=_SECONDS, context=self._context)

    def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Sends a request and returns the reply.

        Args:
            method: Such as GET.
            path: Such as /v1/models.
            body: Bytes, or an object to send as JSON.
            headers: Additional headers.
            query: Parameters.
        """
        every = {**self._headers, **(headers or {})}
        if isinstance(body, dict | list):
            body = json.dumps(body).encode()
            every.setdefault("content-type", "application/json")
        connection = self.connect()
        try:
            connection.request(
                method, path + (f"?{urlencode(query)}" if query else ""), body, every
            )
            reply = connection.getresponse()
            found = {name.lower(): value for name, value in reply.getheaders()}
            return Answer(reply.status, found, reply.read())
        finally:
            connection.close()

    def get(self, path: str, query: Mapping[str, Any] | None = None, **headers: str) -> Answer:
        """GET; underscores in the names of headers stand for hyphens."""
        return self.ask("GET", path, None, _names(headers), query)

    def post(
        self, path: str, body: Any, query: Mapping[str, Any] | None = None, **headers: str
    ) -> Answer:
        """POST; underscores in the names of headers stand for hyphens."""
        return self.ask("POST", path, body, _names(headers), query)

    def post_npy(
        self, path: str, array: Any, query: Mapping[str, Any] | None = None, **headers: str
    ) -> Answer:
        """POST of an array as an npy file."""
        return self.post(path, npy(array), query, content_type="application/x-npy", **headers)


def npy(array: Any) -> bytes:
    """The content of an npy file."""
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


def png(pixels: NDArray[np.uint8]) -> bytes:
    """A picture file of [H, W] or [H, W, 3]."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def _names(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}
