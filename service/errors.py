"""Errors that callers see, independent of the transport, and the error of a failed start.

ServiceError                  status, reason and message for the caller
├── InvalidArgument           a request field has an invalid value
├── ModelNotFound             no such model or version
├── NoLatentMap               the model's bundle has no latent map
├── NotForThisModel           the model does not support the operation
├── Overloaded                too much is in flight; retry after a moment
│   ├── OverCallerLimit       this caller has too much in flight
│   └── OutOfMemory           there was no memory for it; retry after a moment
├── DeadlineExceeded          the caller's deadline has passed
├── Unauthenticated           no token, or a wrong one
├── Unimplemented             unknown method or compression
├── UnknownService            unknown health service name
├── TooLarge                  message size above the limit
└── NotReady                  no model loaded, or the server ends the call
StartError                    the server refuses to start (never sent to a caller)
"""

import enum

# Maximum length of a value in an error message, in characters.
_MAX_VALUE = 100
# Suggested retry delay of calls that the server had no memory for, in seconds.
_OUT_OF_MEMORY_RETRY = 1.0


class Status(enum.IntEnum):
    """The gRPC status codes that the service uses."""

    CANCELLED = 1
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    UNAUTHENTICATED = 16


class ServiceError(Exception):
    """An error whose message is sent to the caller.

    Attributes:
        status: The gRPC status code.
        reason: Machine-readable reason in UPPER_SNAKE_CASE, sent in `google.rpc.ErrorInfo`.
    """

    status = Status.INTERNAL
    reason = "INTERNAL"


class InvalidArgument(ServiceError):
    """A field of the request has an invalid value.

    Args:
        field: Path of the field, for example `images.tensor.shape`; shortened, as it may have names
            that the caller has chosen.
        got: The value in the request.
        wanted: Description of the values allowed.

    Attributes:
        index: Index of the invalid row if there is exactly one, else None.
    """

    status = Status.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"
    index: int | None = None

    def __init__(self, field: str, got: object, wanted: str):
        self.field = shortened(field)
        self.description = f"got {shortened(got)}, wanted {wanted}"
        super().__init__(f"{self.field}: {self.description}")

    def rename(self, field: str, to: str) -> None:
        """Gives a field another name, if it is the invalid one, or that is a part of it.

        Args:
            field: Path of the field.
            to: The name by which the caller knows it.
        """
        part = self.field.removeprefix(field)
        if part != self.field and part[:1] in ("", ".", "["):
            self.field = f"{to}{part}"
            self.args = (f"{self.field}: {self.description}",)


class ModelNotFound(ServiceError):
    """No such model or version is served."""

    status = Status.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class NoLatentMap(ServiceError):
    """The model's bundle has no map of its latent space."""

    status = Status.NOT_FOUND
    reason = "NO_LATENT_MAP"


class NotForThisModel(ServiceError):
    """The model does not support the operation, for example a label without labelled data."""

    status = Status.FAILED_PRECONDITION
    reason = "NOT_FOR_THIS_MODEL"


class Overloaded(ServiceError):
    """The call was rejected because too much is in flight.

    Args:
        message: The limit that the call would exceed, with the numbers.
        retry_seconds: Seconds to wait before a retry.
    """

    status = Status.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, message: str, retry_seconds: float):
        super().__init__(message)
        self.retry_seconds = retry_seconds


class OverCallerLimit(Overloaded):
    """The call was rejected because its caller has too much in flight."""


class OutOfMemory(Overloaded):
    """There was no memory for the call; other calls in flight will free some."""

    def __init__(self) -> None:
        super().__init__("the server is out of memory", _OUT_OF_MEMORY_RETRY)


class DeadlineExceeded(ServiceError):
    """The call's deadline passed before its rows were computed; the rows were dropped."""

    status = Status.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(ServiceError):
    """The call has no token or an invalid one."""

    status = Status.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Unimplemented(ServiceError):
    """The server does not have the method, or does not support a message's compression."""

    status = Status.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class UnknownService(ServiceError):
    """A health check names an unknown service."""

    status = Status.NOT_FOUND
    reason = "SERVICE_NOT_FOUND"


class TooLarge(ServiceError):
    """A message is larger than the server accepts."""

    status = Status.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class NotReady(ServiceError):
    """No model is loaded, or the server ends the call: it is stopping, or the call stalls."""

    status = Status.UNAVAILABLE
    reason = "NOT_READY"


def shortened(value: object) -> str:
    """Formats a value for an error message, cut to 100 characters: trailers are limited in size."""
    text = str(value)
    if len(text) <= _MAX_VALUE:
        return text
    return f"{text[:_MAX_VALUE]}... ({len(text)} characters)"


class StartError(Exception):
    """The server refuses to start; the message names the setting and the remedy."""
