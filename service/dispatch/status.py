"""Conversion of domain errors to gRPC statuses."""

from collections.abc import Mapping
from dataclasses import dataclass

from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from service.errors import InvalidArgument, Overloaded, ServiceError, Status, TooLarge

#: Metadata that has a google.rpc.Status with the details of an error.
DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
# Maximum length of a status message in bytes of UTF-8. gRPC clients limit trailers to 8 KiB, which
# contain it percent-encoded, with three characters for a byte, and up to twice in Base64.
_MAX_MESSAGE = 1000
# Suggested retry delay: within seconds, replies that nobody reads are dropped.
_RETRY_SECONDS = 1.0


@dataclass(frozen=True)
class RpcStatus:
    """Status of a call that failed.

    Attributes:
        status: Status code.
        message: Status message for the caller.
        metadata: Additional trailers; the values of keys that end in `-bin` are bytes.
    """

    status: Status
    message: str
    metadata: tuple[tuple[str, str | bytes], ...] = ()

    @classmethod
    def of(cls, error: ServiceError, more: Mapping[str, str] | None = None) -> "RpcStatus":
        """Converts an error to a status with details: ErrorInfo, BadRequest, RetryInfo.

        Args:
            error: Error to convert.
            more: Additional metadata for the ErrorInfo.
        """
        message = _cut(str(error))
        status = status_pb2.Status(code=error.status.value, message=message)
        metadata = dict(more or {})
        if isinstance(error, InvalidArgument) and error.index is not None:
            metadata["index"] = str(error.index)
        info = error_details_pb2.ErrorInfo(
            reason=error.reason, domain="latentserve", metadata=metadata
        )
        status.details.append(_packed(info))
        trailers: list[tuple[str, str | bytes]] = []
        if isinstance(error, InvalidArgument):
            violation = error_details_pb2.BadRequest.FieldViolation(
                field=error.field, description=_cut(error.description)
            )
            details = error_details_pb2.BadRequest(field_violations=[violation])
            status.details.append(_packed(details))
        if isinstance(error, Overloaded):
            delay = Duration()
            delay.FromMilliseconds(round(1000 * error.retry_seconds))
            status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
            # For gRPC's own retries, which do not read RetryInfo.
            trailers.append((_PUSHBACK, str(delay.ToMilliseconds())))
        trailers.append((DETAILS, status.SerializeToString()))
        return cls(error.status, message, tuple(trailers))


class CallFailed(Exception):
    """A call has failed with a status for its caller.

    Attributes:
        failure: Status for the caller.
    """

    def __init__(self, failure: RpcStatus):
        super().__init__(failure.message)
        self.failure = failure


def no_room(size: int) -> Overloaded:
    """The error for a call whose reply does not fit into the memory for replies.

    Args:
        size: Length of the reply in bytes.
    """
    return Overloaded(
        f"the reply takes {size} bytes, and there is no room beside replies that wait to be read",
        _RETRY_SECONDS,
    )


def too_large(got: int, limit: int) -> TooLarge:
    """The error for a message above the limit in bytes, worded as in gRPC's libraries.

    Args:
        got: Length of the message, or of the body of an HTTP request that is one.
        limit: The limit.
    """
    return TooLarge(f"message: larger than max ({got} vs. {limit} bytes; see max_message_bytes)")


def _cut(text: str) -> str:
    return text.encode(errors="replace")[:_MAX_MESSAGE].decode(errors="ignore")


def _packed(message: Message) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
