"""The streaming RPCs of a real server, over both transports."""

import itertools
import threading

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from bundle import open_bundle
from common.noise import standard_normal
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.stubs import array, details, images, stub_of, tensor
from tests.support.waiting import wait_until_constant

DIM = 32


@pytest.fixture(scope="module")
def server(each_server):
    return each_server


@pytest.fixture(scope="module")
def stub(server):
    with stub_of(server.target) as connected:
        yield connected


@pytest.fixture(scope="module")
def digits(models):
    return open_bundle(models / "mnist" / "1").golden["encoder.image"]


def sample_stream(stub, chunk_rows=0, **fields):
    request = pb.SampleStreamRequest(request=pb.SampleRequest(**fields), chunk_rows=chunk_rows)
    return [reply.response for reply in stub.SampleStream(request)]


@settings(max_examples=8)
@given(count=st.integers(1, 700), chunk=st.integers(0, 300), offset=st.integers(0, 2**63))
def test_sample_stream_is_the_seeded_sequence_for_any_chunk_size(server, count, chunk, offset):
    with stub_of(server.target) as stub:
        whole = stub.Sample(pb.SampleRequest(count=count, seed=9, offset=offset))
        chunks = sample_stream(stub, chunk, count=count, seed=9, offset=offset)
        assert b"".join(chunk.images.tensor.data for chunk in chunks) == whole.images.tensor.data
        sizes = [chunk.images.tensor.shape[0] for chunk in chunks]
        assert set(sizes[:-1]) <= {chunk or 256}
        starts = itertools.accumulate(sizes, initial=offset)
        assert [chunk.offset for chunk in chunks] == list(starts)[:-1]


def test_a_sample_stream_may_exceed_the_rows_of_a_unary_call(stub):
    chunks = sample_stream(stub, 4096, count=9000, seed=1, format=pb.IMAGE_FORMAT_UINT8)
    assert [chunk.images.tensor.shape[0] for chunk in chunks] == [4096, 4096, 808]


def test_a_sample_stream_without_a_seed_has_one_fresh_seed(stub):
    chunks = sample_stream(stub, 10, count=50)
    assert len({chunk.seed for chunk in chunks}) == 1
    again = sample_stream(stub, 50, count=50, seed=chunks[0].seed)
    assert again[0].images.tensor.data == b"".join(chunk.images.tensor.data for chunk in chunks)


def test_replies_of_a_stream_come_in_the_order_of_its_messages(stub, digits):
    def requests():
        for start in range(0, len(digits), 4):
            request = pb.EncodeRequest(
                images=images(digits[start : start + 4]), draw=True, seed=3, offset=start
            )
            yield pb.EncodeStreamRequest(request=request)

    replies = [reply.response for reply in stub.EncodeStream(requests())]
    whole = stub.Encode(pb.EncodeRequest(images=images(digits), draw=True, seed=3))
    for field in ("mean", "log_var", "z"):
        joined = b"".join(getattr(reply, field).data for reply in replies)
        assert joined == getattr(whole, field).data
    latents = [
        pb.DecodeStreamRequest(request=pb.DecodeRequest(latents=reply.z)) for reply in replies
    ]
    decoded = [reply.response for reply in stub.DecodeStream(iter(latents))]
    wanted = stub.Decode(pb.DecodeRequest(latents=whole.z))
    assert b"".join(reply.images.tensor.data for reply in decoded) == wanted.images.tensor.data
    assert replies[0].timing.total_seconds > 0


def test_an_empty_stream_has_no_replies(stub):
    assert list(stub.EncodeStream(iter(()))) == []
    assert list(stub.DecodeStream(iter(()))) == []


@pytest.mark.parametrize("position", [0, 2])
def test_an_invalid_message_ends_the_stream_and_names_the_field(stub, position):
    def requests():
        for number in range(5):
            dim = DIM + 1 if number == position else DIM
            latents = tensor(np.zeros((1, dim)))
            yield pb.DecodeStreamRequest(request=pb.DecodeRequest(latents=latents))

    answered = []
    with pytest.raises(grpc.RpcError) as caught:
        answered.extend(stub.DecodeStream(requests()))
    assert len(answered) <= position
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "latents.shape"


@pytest.mark.parametrize(
    ("fields", "chunk", "field"),
    [
        ({"count": 0}, 0, "request.count"),
        ({"count": 5}, 4097, "chunk_rows"),
        ({"count": 5}, -1, "chunk_rows"),
        ({"count": 5, "offset": 2**64 - 4}, 0, "offset"),
        ({"count": 5, "temperature": -1}, 0, "temperature"),
    ],
)
def test_an_invalid_sample_stream_request_is_refused(stub, fields, chunk, field):
    with pytest.raises(grpc.RpcError) as caught:
        sample_stream(stub, chunk, **fields)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    violation = details(caught.value, error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == field


def test_a_stream_of_an_unknown_model_is_not_found(stub):
    with pytest.raises(grpc.RpcError) as caught:
        sample_stream(stub, count=1, model=pb.ModelSelector(name="nope"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_stream_that_is_not_read_stops_computing(server, stub):
    """Back-pressure: the server stops where the caller's flow-control window is full."""
    rows = 1024

    def computed() -> float:
        return server.metric("latentserve_batch_rows_sum")

    before = computed()
    call = stub.SampleStream(
        pb.SampleStreamRequest(request=pb.SampleRequest(count=200 * rows, seed=1), chunk_rows=rows)
    )
    next(call)
    assert wait_until_constant(computed, 0.3) - before < 200 * rows
    # A lone call finds a free server.
    assert stub.Sample(pb.SampleRequest(count=1)).timing.queue_seconds < 0.5
    call.cancel()


def test_a_small_call_does_not_wait_for_a_stream_to_end(stub):
    stopped = threading.Event()

    def swallow():
        call = stub.SampleStream(
            pb.SampleStreamRequest(
                request=pb.SampleRequest(count=10**9, seed=1, format=pb.IMAGE_FORMAT_UINT8)
            )
        )
        for _ in call:
            if stopped.is_set():
                call.cancel()
                return

    thread = threading.Thread(target=swallow)
    thread.start()
    try:
        for _ in range(10):
            stub.Decode(pb.DecodeRequest(latents=tensor(standard_normal(0, 0, 1, DIM))), timeout=10)
    finally:
        stopped.set()
        thread.join(30)
    assert not thread.is_alive()


def test_rows_of_a_stream_are_bit_equal_to_those_of_a_unary_call(stub):
    z = standard_normal(5, 0, 40, DIM)
    requests = (
        pb.DecodeStreamRequest(request=pb.DecodeRequest(latents=tensor(z[row : row + 1])))
        for row in range(40)
    )
    rows = [array(reply.response.images.tensor)[0] for reply in stub.DecodeStream(requests)]
    whole = array(stub.Decode(pb.DecodeRequest(latents=tensor(z))).images.tensor)
    assert np.stack(rows).tobytes() == whole.tobytes()
