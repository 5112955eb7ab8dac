"""The index of an invalid picture file is sent as data in the error, over both transports."""

import contextlib
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from latentserve._client.chunks import count_from
from latentserve.client import InvalidArgument, Violation
from latentserve.v1 import latent_service_pb2 as pb
from service.api.pictures import write_files
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.stubs import details, files, stub_of
from tests.support.tiny import write_tiny

GOOD, LARGE = (write_files(np.zeros((1, 1, side, side), np.uint8))[0] for side in (4, 9))
WRONG = "got grey 9x9 PNG, wanted grey 4x4 (height x width), or resize"


@pytest.fixture(scope="module")
def server(transport_kind, tmp_path_factory):
    """A server that accepts 5 rows per message."""
    folder = tmp_path_factory.mktemp("index")
    write_tiny(folder / "models" / "tiny")
    arguments = ("--max-rows", "5", "--transport", transport_kind)
    with Server(folder / "models", folder / "log", *arguments) as running:
        yield running.wait_until_serving()


@pytest.fixture(params=KINDS)
def client(request, server):
    with connect(request.param, server.target) as connected:
        yield connected


def refused(call):
    with pytest.raises(InvalidArgument) as caught:
        call()
    return caught.value


def test_the_server_sends_the_index_with_the_field_violation(server):
    with stub_of(server.target) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(images=files(GOOD, GOOD, LARGE)))
    info = details(caught.value, error_details_pb2.ErrorInfo)
    assert dict(info.metadata) == {"index": "2"}
    (violation,) = details(caught.value, error_details_pb2.BadRequest).field_violations
    assert (violation.field, violation.description) == ("images.encoded.files[2]", WRONG)


def test_an_error_that_is_not_about_one_file_has_no_index(server, client):
    with stub_of(server.target) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Encode(pb.EncodeRequest(images=files(*6 * [GOOD])))
    assert not details(caught.value, error_details_pb2.ErrorInfo).metadata
    assert refused(lambda: client.encode(np.zeros((7, 3), np.float32))).index is None


@pytest.mark.parametrize("rpc", ["encode", "reconstruct", "score"])
@pytest.mark.parametrize("row", [0, 3, 5, 12])
def test_the_index_counts_all_files_of_a_call_split_into_messages(client, rpc, row):
    images = 13 * [GOOD]
    images[row] = LARGE
    error = refused(lambda: getattr(client, rpc)(images))
    assert error.index == row
    assert error.violations == (Violation(f"images.encoded.files[{row}]", WRONG),)
    assert str(error) == f"images.encoded.files[{row}]: {WRONG}"


def test_the_index_counts_the_files_of_a_batch_in_a_stream(client):
    batches = [7 * [GOOD], [*6 * [GOOD], LARGE], [GOOD]]
    results = []

    def call():
        for posterior in client.encode_stream(batches):
            results.append(posterior)

    error = refused(call)
    assert len(results) == 1
    assert error.index == 6
    assert str(error) == f"images.encoded.files[6]: {WRONG}"


def test_the_index_tells_which_end_of_an_interpolation_is_invalid(client):
    error = refused(lambda: client.interpolate(GOOD, LARGE, 3))
    assert (error.index, error.violations[0].field) == (1, "images.encoded.files[1]")


class _Older(grpc.GenericRpcHandler):
    """A server that refuses a file named `wrong`, with given ErrorInfo metadata."""

    def __init__(self, metadata):
        self._metadata = metadata

    def service(self, call):
        if call.method.endswith("GetModel"):
            reply = pb.GetModelResponse(model=pb.ModelInfo(name="x", max_rows=2))
            return grpc.unary_unary_rpc_method_handler(lambda *_: reply.SerializeToString())
        if call.method.endswith("GetServerInfo"):
            reply = pb.GetServerInfoResponse(limits={"max_rows": 2, "max_message_bytes": 10**6})
            return grpc.unary_unary_rpc_method_handler(lambda *_: reply.SerializeToString())
        return grpc.unary_unary_rpc_method_handler(self._refuse)

    def _refuse(self, raw, context):
        request = pb.EncodeRequest.FromString(raw)
        if b"wrong" not in request.images.encoded.files:
            vector = {"dtype": "DATA_TYPE_FLOAT32", "shape": [2, 1], "data": bytes(8)}
            return pb.EncodeResponse(mean=vector).SerializeToString()
        violation = {"field": "images.encoded.files[1]", "description": "got wrong, wanted right"}
        status = status_pb2.Status(code=3, message="images.encoded.files[1]: got wrong")
        for detail in (
            error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", metadata=self._metadata),
            error_details_pb2.BadRequest(field_violations=[violation]),
        ):
            packed = any_pb2.Any()
            packed.Pack(detail)
            status.details.append(packed)
        context.set_trailing_metadata([("grpc-status-details-bin", status.SerializeToString())])
        return context.abort(grpc.StatusCode.INVALID_ARGUMENT, status.message)


@contextlib.contextmanager
def older(metadata):
    server = grpc.server(ThreadPoolExecutor(2), handlers=(_Older(metadata),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metadata", [{}, {"index": ""}, {"index": "-1"}, {"index": "1" * 5000}])
def test_an_error_without_an_index_is_not_rewritten(kind, metadata):
    with older(metadata) as target, connect(kind, target) as client:
        error = refused(lambda: client.encode([b"a", b"b", b"c", b"wrong"]))
    assert error.index is None
    assert error.violations[0].field == "images.encoded.files[1]"
    assert str(error) == "images.encoded.files[1]: got wrong"


def test_only_field_paths_that_end_in_the_index_are_rewritten():
    violations = (Violation("a[1].files[1]", "got [1]"), Violation("label[2]", "got [1]"))
    error = InvalidArgument("a[1].files[1]: got [1]", grpc.StatusCode.INVALID_ARGUMENT)
    error.violations, error.index = violations, 1
    count_from(error, 10)
    assert error.index == 11
    assert [violation.field for violation in error.violations] == ["a[1].files[11]", "label[2]"]
    assert str(error) == "a[1].files[11]: got [1]"
