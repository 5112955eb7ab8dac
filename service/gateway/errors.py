"""Errors of HTTP itself, which no gRPC call can have."""

from collections.abc import Mapping
from http import HTTPStatus


class HttpError(Exception):
    """A request that the gateway answers with a status, before there is a call.

    Args:
        status: Status of the reply.
        detail: What is wrong, for the caller.
        headers: Additional headers of the reply.
    """

    def __init__(self, status: HTTPStatus, detail: str, headers: Mapping[str, str] | None = None):
        super().__init__(detail)
        self.status = status
        self.headers = headers or {}


class WrongMedia(HttpError):
    """The body of a request has a media type that its operation does not take.

    Args:
        got: The media type.
        wanted: Media types that the operation takes.
    """

    def __init__(self, got: str, wanted: str):
        super().__init__(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"content-type: got {got or 'none'}, wanted {wanted}",
            {"Accept-Post": wanted},
        )


class NotAcceptable(HttpError):
    """None of the media types that a caller accepts can be had.

    Args:
        got: The Accept header.
        wanted: Media types that the operation replies in.
    """

    def __init__(self, got: str, wanted: str):
        super().__init__(HTTPStatus.NOT_ACCEPTABLE, f"accept: got {got}, wanted {wanted}")
