"""What can go wrong in answering a call, without a word about the transport.

ServiceError                  a status, a reason and a message for the caller
├── InvalidArgument           a field with the value got and the value wanted
├── ModelNotFound             no such model or version
├── NotForThisModel           the model cannot do what was asked
├── Overloaded                too much is in flight; come again in a moment
├── DeadlineExceeded          the caller's deadline has passed
├── Unauthenticated           no or a wrong token
├── Unimplemented             no such method, or no such compression
├── UnknownService            health has no such name
├── TooLarge                  a message beyond the limit
└── NotReady                  loading, draining, or no model loaded
StartError                    the server refuses to start (never sent)
"""

import enum

_LONGEST = 100


class Status(enum.IntEnum):
    """How a call failed: gRPC's status codes, as far as they are used."""

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
    """A call cannot be answered, and the caller is told why.

    Attributes:
        status: How it failed.
        reason: Machine-readable, in UPPER_SNAKE_CASE.
    """

    status = Status.INTERNAL
    reason = "INTERNAL"


class InvalidArgument(ServiceError):
    """A field of the request has a wrong value.

    Args:
        field: Its path, for example `images.tensor.shape`.
        got: The value got.
        wanted: The value wanted.
    """

    status = Status.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"

    def __init__(self, field: str, got: object, wanted: str):
        self.field = field
        self.description = f"got {shortened(got)}, wanted {wanted}"
        super().__init__(f"{field}: {self.description}")


class ModelNotFound(ServiceError):
    """No such model or version is served."""

    status = Status.NOT_FOUND
    reason = "MODEL_NOT_FOUND"


class NotForThisModel(ServiceError):
    """The model is there, but cannot do what was asked of it."""

    status = Status.FAILED_PRECONDITION
    reason = "NOT_FOR_THIS_MODEL"


class Overloaded(ServiceError):
    """Too much is in flight.

    Args:
        message: What is too much, how much there is and how much may be.
        retry_seconds: When to come again.
    """

    status = Status.RESOURCE_EXHAUSTED
    reason = "OVERLOADED"

    def __init__(self, message: str, retry_seconds: float):
        super().__init__(message)
        self.retry_seconds = retry_seconds


class DeadlineExceeded(ServiceError):
    """The caller's deadline passed before its rows were computed; they never will be."""

    status = Status.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class Unauthenticated(ServiceError):
    """The call carries no token, or a wrong one."""

    status = Status.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"


class Unimplemented(ServiceError):
    """The server has no such method, or does not know how a message is encoded."""

    status = Status.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"


class UnknownService(ServiceError):
    """Health was asked for a name that there is not."""

    status = Status.NOT_FOUND
    reason = "SERVICE_NOT_FOUND"


class TooLarge(ServiceError):
    """A message is larger than the server takes."""

    status = Status.RESOURCE_EXHAUSTED
    reason = "MESSAGE_TOO_LARGE"


class NotReady(ServiceError):
    """The server is loading, draining or has no model."""

    status = Status.UNAVAILABLE
    reason = "NOT_READY"


def shortened(value: object) -> str:
    """A caller's value as text that fits into an error: trailers have little room."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... ({len(text)} characters)"


class StartError(Exception):
    """The server refuses to start; the message names the setting and the remedy."""
