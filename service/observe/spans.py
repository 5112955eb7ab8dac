"""Spans of calls by gRPC, and of requests by HTTP, by OpenTelemetry's conventions for each."""

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from opentelemetry.trace import Span

# Names of gRPC's status codes; the index is the code's number.
_CODES: Final = (
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND",
    "ALREADY_EXISTS", "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION",
    "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
    "UNAUTHENTICATED",
)  # fmt: skip
# Failures of the server itself, which are errors in a trace; 4xx are the caller's.
_SERVER_ERRORS: Final = range(500, 600)


class CallSpan:
    """The span of one call."""

    def __init__(self, span: "Span"):
        self._span = span
        self._code = "OK"

    def set(self, **attributes: Any) -> None:
        """Sets attributes of the call, prefixed with `latentserve.`."""
        for name, value in attributes.items():
            self._span.set_attribute(f"latentserve.{name}", value)

    def failed(self, code: str, *, error: bool) -> None:
        """Sets the status of a call that failed.

        Args:
            code: Name of the gRPC status code.
            error: Whether the server, not the caller, is at fault.
        """
        from opentelemetry.trace import Status, StatusCode

        self._code = code
        if error:
            self._span.set_status(Status(StatusCode.ERROR, code))

    def end(self) -> None:
        """Ends the span, with the status code as a number and (newer convention) as a name."""
        self._span.set_attribute("rpc.grpc.status_code", _CODES.index(self._code))
        self._span.set_attribute("rpc.response.status_code", self._code)
        self._span.end()


class HttpSpan:
    """The span of one request by HTTP.

    Args:
        span: The span.
        method: The method, as it begins the span's name.
    """

    def __init__(self, span: "Span", method: str):
        self._span = span
        self._method = method
        self._status = 0
        self._error = ""

    def set(self, **attributes: Any) -> None:
        """Sets attributes of the call that answers it, prefixed with `latentserve.`."""
        for name, value in attributes.items():
            self._span.set_attribute(f"latentserve.{name}", value)

    def routed(self, route: str) -> None:
        """Sets the route, as in `/v1/models/{model}:encode`."""
        self._span.update_name(f"{self._method} {route}")
        self._span.set_attribute("http.route", route)

    def responded(self, status: int) -> None:
        """Sets the status of the reply, once it has begun."""
        self._status = status

    def failed(self, kind: str) -> None:
        """Says that the reply is not complete, or not there at all.

        Args:
            kind: Name of the gRPC status, or of the exception.
        """
        self._error = kind

    def end(self) -> None:
        """Ends the span: an error if the server failed, or the reply is not complete."""
        from opentelemetry.trace import Status, StatusCode

        if self._status:
            self._span.set_attribute("http.response.status_code", self._status)
        if self._status in _SERVER_ERRORS:
            self._error = str(self._status)
        if self._error:
            self._span.set_attribute("error.type", self._error)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end()
