"""What a call can raise.

    LatentserveError
    ├── ServerError              the server, or the way to it, answered with an error
    │   ├── InvalidArgument      a field is wrong; `violations` names it
    │   ├── NotFound             no such model or version
    │   ├── FailedPrecondition   the model cannot do this
    │   ├── ResourceExhausted    too much at once; `retry_seconds` tells when to come again
    │   ├── DeadlineExceeded     the timeout passed
    │   ├── Unavailable          not reachable, loading or draining
    │   ├── Unauthenticated      no or a wrong token
    │   └── InternalError        the server's fault; `request_id` is its name in the log
    └── ProtocolError            a reply that does not make sense

An array of a dtype or shape that could never be sent raises TypeError or
ValueError before anything is sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from latentserve.compat.v1 import compat_pb2

_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"


class LatentserveError(Exception):
    """Base of everything that a client raises on purpose."""


class ProtocolError(LatentserveError):
    """A reply does not make sense, for example a tensor of the wrong length."""


@dataclass(frozen=True)
class Violation:
    """What is wrong with one field of a request.

    Attributes:
        field: Its path, for example `images.tensor.shape`.
        description: The value got and the value wanted.
    """

    field: str
    description: str


class ServerError(LatentserveError):
    """The server, or the way to it, answered with an error.

    Attributes:
        code: The gRPC status code.
        reason: Machine-readable reason, or empty where the server gave none.
        violations: What is wrong, field by field.
        retry_seconds: When the server asked to come again, or None.
        request_id: The call's name in the server's log, or empty where it has none there.
    """

    def __init__(
        self,
        message: str,
        code: grpc.StatusCode,
        reason: str = "",
        violations: tuple[Violation, ...] = (),
        retry_seconds: float | None = None,
        request_id: str = "",
    ):
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.violations = violations
        self.retry_seconds = retry_seconds
        self.request_id = request_id


class InvalidArgument(ServerError):
    """A field of the request has a wrong value; `violations` names it.

    Attributes:
        index: Index of the image file that is wrong, among those given to the call, or in a
            stream among those of its batch. None where no single file is to blame, and from
            a server of version 0.1.0, which does not send it: the index in the message and
            in `violations` then counts the files of one message of the call.
    """

    index: int | None = None


class NotFound(ServerError):
    """No such model or version is served."""


class FailedPrecondition(ServerError):
    """The model is there, but cannot do what was asked of it."""


class ResourceExhausted(ServerError):
    """Too much at once: a full queue or an oversized message."""


class DeadlineExceeded(ServerError):
    """The timeout passed."""


class Unavailable(ServerError):
    """The server cannot be reached, is loading or is draining; the call was retried."""


class Unauthenticated(ServerError):
    """No or a wrong token."""


class InternalError(ServerError):
    """The server failed; the message has the id to look for in its log."""


_CLASSES: dict[grpc.StatusCode, type[ServerError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.FAILED_PRECONDITION: FailedPrecondition,
    grpc.StatusCode.RESOURCE_EXHAUSTED: ResourceExhausted,
    grpc.StatusCode.DEADLINE_EXCEEDED: DeadlineExceeded,
    grpc.StatusCode.UNAVAILABLE: Unavailable,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.INTERNAL: InternalError,
}


def from_rpc_error(error: grpc.RpcError, target: str) -> ServerError:
    """Turns gRPC's error into one of this tree, with the details the server sent.

    Args:
        error: As raised by a stub or a stream, of either kind.
        target: The server's address, named where it could not be reached.
    """
    # Those of grpc.aio are no grpc.Call, but have the same methods.
    call: Any = error
    if not hasattr(call, "code"):
        return ServerError(str(error), grpc.StatusCode.UNKNOWN)
    code = call.code()
    message = call.details() or code.name
    trailers = dict(call.trailing_metadata() or ())
    reason, metadata, violations = _details(trailers.get(_DETAILS))
    if code == grpc.StatusCode.UNAVAILABLE and not reason:
        message = f"{target} cannot be reached ({message})"
    pushback = _number(str(trailers.get(_PUSHBACK, "")))
    retry_seconds = None if pushback is None else pushback / 1000
    request_id = metadata.get("request_id", "")
    made = _CLASSES.get(code, ServerError)(
        message, code, reason, violations, retry_seconds, request_id
    )
    if isinstance(made, InvalidArgument):
        made.index = _number(metadata.get("index", ""))
    return made


def _number(text: str) -> int | None:
    # No index and no wait has more digits, and Python refuses to read thousands of them.
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _details(raw: object) -> tuple[str, Mapping[str, str], tuple[Violation, ...]]:
    """Reason and metadata of the ErrorInfo, and the field violations, as far as they were sent."""
    reason: str = ""
    metadata: Mapping[str, str] = {}
    violations: list[Violation] = []
    if not isinstance(raw, bytes):
        return reason, metadata, ()
    try:
        for detail in compat_pb2.RpcStatus.FromString(raw).details:
            kind = detail.type_url.rpartition("/")[2]
            if kind == "google.rpc.ErrorInfo":
                info = compat_pb2.RpcErrorInfo.FromString(detail.value)
                reason, metadata = info.reason, info.metadata
            elif kind == "google.rpc.BadRequest":
                for each in compat_pb2.RpcBadRequest.FromString(detail.value).field_violations:
                    violations.append(Violation(each.field, each.description))
    except DecodeError:
        return "", {}, ()  # not ours, for example a proxy's; the code and message stand
    return reason, metadata, tuple(violations)
