"""Statuses of errors: whatever callers send, clients accept the trailers that quote it."""

import base64
from urllib.parse import quote

import pytest
from google.rpc import error_details_pb2, status_pb2

from service.dispatch.status import DETAILS, RpcStatus
from service.errors import InvalidArgument, ServiceError, UnknownService

# What gRPC's clients accept by default; each field counts 32 more.
MAX_TRAILERS = 8192


def size_of(status: RpcStatus) -> int:
    """Size of the trailers, as HTTP/2 counts it."""
    fields = [("grpc-status", "13"), ("grpc-message", quote(status.message))]
    for key, value in status.metadata:
        sent = base64.b64encode(value).decode() if isinstance(value, bytes) else value
        fields.append((key, sent))
    return sum(len(key) + len(value) + 32 for key, value in fields)


@pytest.mark.parametrize("text", ["x", "%", "\0", "ä", "模", "😀", "a😀"])
@pytest.mark.parametrize(
    "make",
    [
        lambda text: InvalidArgument(f"parameters.{text}", "no value", "one"),
        lambda text: InvalidArgument(text, text, text),
        UnknownService,
    ],
)
def test_trailers_are_within_the_limit_of_clients(make, text):
    error: ServiceError = make(5000 * text)
    status = RpcStatus.of(error, {"request_id": "a" * 64})
    assert size_of(status) < MAX_TRAILERS
    details = status_pb2.Status.FromString(dict(status.metadata)[DETAILS])
    assert details.message == status.message
    assert str(error).startswith(status.message)
    assert len(status.message.encode()) > 900 or str(error) == status.message


def test_a_field_of_any_length_leaves_room_for_what_is_wrong_with_it():
    status = RpcStatus.of(InvalidArgument("parameters." + 5000 * "x", "no value", "one"))
    assert status.message.endswith("xxx... (5011 characters): got no value, wanted one")
    details = status_pb2.Status.FromString(dict(status.metadata)[DETAILS])
    bad = error_details_pb2.BadRequest()
    assert details.details[1].Unpack(bad)
    assert bad.field_violations[0].field.endswith("xxx... (5011 characters)")
