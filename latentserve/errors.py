"""Errors that a call can raise.

    LatentserveError
    ├── ServerError              the call failed, with a gRPC status
    │   ├── InvalidArgument      a field is wrong; `violations` names it
    │   ├── NotFound             no such model or version
    │   ├── FailedPrecondition   the model cannot do what was requested
    │   ├── ResourceExhausted    too much in flight; retry after `retry_seconds`
    │   ├── DeadlineExceeded     the deadline passed
    │   ├── Unavailable          server not reachable, loading or draining
    │   ├── Unauthenticated      no token, or a wrong one
    │   └── InternalError        a bug of the server; `request_id` is in its log
    └── ProtocolError            the reply is malformed

Arguments that cannot be sent, such as an array of a wrong dtype or shape, raise
TypeError or ValueError instead, before anything is sent.
"""

from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from latentserve._client import proxy
from latentserve.compat.v1 import compat_pb2

_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
# Domain of the ErrorInfo in every error that the server sends.
_DOMAIN = "latentserve"


class LatentserveError(Exception):
    """Base class of the errors that a client raises."""


class ProtocolError(LatentserveError):
    """A reply is malformed, for example a tensor of the wrong length."""


@dataclass(frozen=True)
class Violation:
    """A field of a request that is wrong.

    Attributes:
        field: Path of the field, for example `images.tensor.shape`.
        description: The value that the server got, and the values that are valid.
    """

    field: str
    description: str


class ServerError(LatentserveError):
    """A call failed with a gRPC status, which the server or the connection to it has set.

    Attributes:
        code: Status code.
        reason: Machine-readable reason; empty if the server gave none.
        violations: Fields of the request that are wrong.
        retry_seconds: Delay that the server requested before a retry; None if it requested none.
        request_id: Id of the call in the server's log; empty if the call is not logged.
        answered: Whether the server itself answered; False if the connection to it was lost, or
            something in between answered, such as a proxy.
    """

    answered: bool = False

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

    def __reduce__(self) -> tuple[Any, ...]:
        # By default an exception is unpickled from `args`, which holds only the message.
        return type(self), (str(self), self.code), self.__dict__


class InvalidArgument(ServerError):
    """A field of the request has a wrong value; `violations` names it.

    Attributes:
        index: Index of the invalid image file among the files of the call or, in a stream, of
            the batch. None if the error is not about a single file, and with a server of version
            0.1.0, which does not send this index: the one in the text of its errors counts the
            files of one request message, not of the whole call.
    """

    index: int | None = None


class NotFound(ServerError):
    """No such model or version is served."""


class FailedPrecondition(ServerError):
    """The model is served, but cannot do what was requested."""


class ResourceExhausted(ServerError):
    """Too much is in flight on the server, or a message is too large."""


class DeadlineExceeded(ServerError):
    """The deadline of a call or a message passed."""


class Unavailable(ServerError):
    """The server cannot be reached, is loading or is draining, and no retry helped."""


class Unauthenticated(ServerError):
    """The call has no token, or a wrong one."""


class InternalError(ServerError):
    """A bug of the server; the message has the id of the call in the server's log.

    Or, if `answered` is False, a stream that a proxy has reset.
    """


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
    """Converts an error of gRPC to a ServerError, with the details that the server sent.

    Raise it after the `except` block: gRPC's error as its cause or context cannot be pickled, and
    what Dask has done to all exceptions of a process pickles these too.

    Args:
        error: Error of a stub or a stream, blocking or asynchronous.
        target: Address of the server, named in the message if it could not be reached.
    """
    # Errors of grpc.aio are not of type grpc.Call, but have the same methods.
    call: Any = error
    if not hasattr(call, "code"):
        return ServerError(str(error), grpc.StatusCode.UNKNOWN)
    code = call.code()
    message = call.details() or code.name
    trailers = dict(call.trailing_metadata() or ())
    info, violations = _details(trailers.get(_DETAILS))
    answered = info.domain == _DOMAIN
    if code == grpc.StatusCode.UNAVAILABLE and not answered:
        message = f"{target} cannot be reached ({message}){proxy.note(target)}"
    pushback = _number(str(trailers.get(_PUSHBACK, "")))
    retry_seconds = None if pushback is None else pushback / 1000
    request_id = info.metadata.get("request_id", "")
    made = _CLASSES.get(code, ServerError)(
        message, code, info.reason, violations, retry_seconds, request_id
    )
    made.answered = answered
    if isinstance(made, InvalidArgument):
        made.index = _number(info.metadata.get("index", ""))
    return made


def _number(text: str) -> int | None:
    """Parses a decimal integer; None if it is not one or has 20 digits or more."""
    return int(text) if text.isdecimal() and len(text) < 20 else None


def _details(raw: object) -> tuple[compat_pb2.RpcErrorInfo, tuple[Violation, ...]]:
    """Returns the ErrorInfo and the field violations; empty if not sent."""
    info = compat_pb2.RpcErrorInfo()
    violations: list[Violation] = []
    if not isinstance(raw, bytes):
        return info, ()
    try:
        for detail in compat_pb2.RpcStatus.FromString(raw).details:
            name = detail.type_url.rpartition("/")[2]
            if name == "google.rpc.ErrorInfo":
                info = compat_pb2.RpcErrorInfo.FromString(detail.value)
            elif name == "google.rpc.BadRequest":
                for wrong in compat_pb2.RpcBadRequest.FromString(detail.value).field_violations:
                    violations.append(Violation(wrong.field, wrong.description))
    except DecodeError:
        return (
            compat_pb2.RpcErrorInfo(),
            (),
        )  # for example of a proxy; status and message are still valid
    return info, tuple(violations)
