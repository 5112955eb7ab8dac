"""Failures as `application/problem+json` (RFC 9457), with the details that gRPC callers get."""

import json
import math
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final

from google.rpc import error_details_pb2, status_pb2
from starlette.responses import Response

from service.dispatch.status import DETAILS, RpcStatus
from service.errors import Status, TooLarge

#: Media type of a problem.
PROBLEM: Final = "application/problem+json"
#: HTTP status of each gRPC status; a message that is too large is 413 instead of 429.
HTTP_STATUSES: Final[Mapping[int, int]] = {
    Status.CANCELLED: 499,
    Status.INVALID_ARGUMENT: 400,
    Status.DEADLINE_EXCEEDED: 504,
    Status.NOT_FOUND: 404,
    Status.RESOURCE_EXHAUSTED: 429,
    Status.FAILED_PRECONDITION: 409,
    Status.UNIMPLEMENTED: 501,
    Status.INTERNAL: 500,
    Status.UNAVAILABLE: 503,
    Status.UNAUTHENTICATED: 401,
}
# Seconds after which a caller may try a server again that answers 503.
_UNAVAILABLE_SECONDS: Final = 1


def fields_of(failure: RpcStatus) -> dict[str, Any]:
    """The members of a problem for a call that failed, `status` among them."""
    status, details = http_status(failure), _details(failure)
    return {
        "title": details.pop("reason", failure.status.name),
        "status": status,
        "detail": failure.message,
        "code": failure.status.name,
        **details,
    }


def response_to(failure: RpcStatus, request_id: str, *, with_error: bool = False) -> Response:
    """The reply to a call that failed.

    Args:
        failure: Status of the call.
        request_id: Identifier of the call in the log.
        with_error: Whether the detail is there as `error` too.
    """
    fields = fields_of(failure)
    if with_error:
        fields["error"] = fields["detail"]
    headers = {}
    if fields["status"] == HTTPStatus.UNAUTHORIZED:
        headers["WWW-Authenticate"] = 'Bearer realm="latentserve", Basic realm="latentserve"'
    if "retry_seconds" in fields:
        headers["Retry-After"] = str(max(1, math.ceil(fields["retry_seconds"])))
    elif fields["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
        headers["Retry-After"] = str(_UNAVAILABLE_SECONDS)
    return problem(fields, request_id, headers)


def problem(
    fields: Mapping[str, Any], request_id: str, headers: Mapping[str, str] | None = None
) -> Response:
    """A reply that says what is wrong.

    Args:
        fields: Members of the problem, `status` among them.
        request_id: Identifier of the request in the log; empty if it has none.
        headers: Additional headers.
    """
    more = {"requestId": request_id} if request_id else {}
    content = json.dumps({"type": "about:blank", **fields, **more}).encode()
    every = {"Cache-Control": "no-store", **(headers or {})}
    return Response(content, fields["status"], every, PROBLEM)


def http_status(failure: RpcStatus) -> int:
    """The HTTP status of a failed call."""
    if failure.status is Status.RESOURCE_EXHAUSTED and _reason(failure) == TooLarge.reason:
        return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    return HTTP_STATUSES[failure.status]


def _reason(failure: RpcStatus) -> str:
    return str(_details(failure).get("reason", ""))


def _details(failure: RpcStatus) -> dict[str, Any]:
    """The google.rpc details of a status: reason, invalid fields, delay of a retry."""
    found: dict[str, Any] = {}
    raw = dict(failure.metadata).get(DETAILS)
    if not isinstance(raw, bytes):
        return found
    for packed in status_pb2.Status.FromString(raw).details:
        info, bad, retry = (
            error_details_pb2.ErrorInfo(),
            error_details_pb2.BadRequest(),
            error_details_pb2.RetryInfo(),
        )
        if packed.Unpack(info):
            found["reason"] = info.reason
            if "index" in info.metadata:
                found["index"] = int(info.metadata["index"])
        elif packed.Unpack(bad):
            found["errors"] = [
                {"field": violation.field, "description": violation.description}
                for violation in bad.field_violations
            ]
        elif packed.Unpack(retry):
            found["retry_seconds"] = retry.retry_delay.ToMilliseconds() / 1000
    return found
