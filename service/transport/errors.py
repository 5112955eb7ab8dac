"""The one place where domain errors become gRPC's."""

from typing import Any, NoReturn

import grpc
from google.protobuf import any_pb2
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2, status_pb2

from service.errors import InvalidArgument, Overloaded, ServiceError, Status

_DETAILS = "grpc-status-details-bin"
_PUSHBACK = "grpc-retry-pushback-ms"
_STATUS: dict[Status, grpc.StatusCode] = {
    status: getattr(grpc.StatusCode, status.name) for status in Status
}
# Trailers have 8 KiB in all, and the message goes into them twice.
_LONGEST_MESSAGE = 1000


async def abort(
    context: grpc.aio.ServicerContext[Any, Any],
    error: ServiceError,
    metadata: dict[str, str] | None = None,
) -> NoReturn:
    """Ends a call with an error.

    Args:
        context: The call.
        error: What to tell its caller.
        metadata: More to tell, in the ErrorInfo.

    Raises:
        grpc.aio.AbortError: Always; grpcio wants it to pass.
    """
    code = _STATUS[error.status]
    message = str(error)[:_LONGEST_MESSAGE]
    status = status_pb2.Status(code=code.value[0], message=message)
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain="latentserve", metadata=metadata)
    status.details.append(_packed(info))
    trailers: list[tuple[str, str | bytes]] = []
    if isinstance(error, InvalidArgument):
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.description[:_LONGEST_MESSAGE]
        )
        status.details.append(_packed(error_details_pb2.BadRequest(field_violations=[violation])))
    if isinstance(error, Overloaded):
        delay = Duration()
        delay.FromMilliseconds(round(1000 * error.retry_seconds))
        status.details.append(_packed(error_details_pb2.RetryInfo(retry_delay=delay)))
        # What gRPC's own retries go by: they do not read RetryInfo.
        trailers.append((_PUSHBACK, str(delay.ToMilliseconds())))
    trailers.append((_DETAILS, status.SerializeToString()))
    await context.abort(code, message, tuple(trailers))
    raise AssertionError("abort raises")


def _packed(message: Any) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)
    return packed
