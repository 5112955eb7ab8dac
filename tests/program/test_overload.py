"""Load shedding: a full server refuses calls at once, and frees the capacity of abandoned ones."""

import concurrent.futures
import contextlib
import time

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from common.noise import standard_normal
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.processes import Server
from tests.support.stubs import details, stub_of, tensor

LARGE = pb.SampleRequest(count=4096, seed=1, format=pb.IMAGE_FORMAT_UINT8)


@pytest.fixture(scope="module")
def narrow(transport_kind, models, tmp_path_factory):
    """A server with capacity for one large call."""
    log = tmp_path_factory.mktemp("narrow") / "log"
    arguments = ("--max-queue-rows", "5000", "--http-port", "0", "--transport", transport_kind)
    with Server(models, log, *arguments) as server:
        yield server.wait_until_serving()


def concurrent_calls(stub, count, request=LARGE):
    """Starts calls at once; returns them when all have ended."""
    calls = [stub.Sample.future(request, timeout=60) for _ in range(count)]
    for call in calls:
        with contextlib.suppress(grpc.RpcError):
            call.result()
    return calls


def retried_until_admitted(stub):
    """Reply to a large call, retried until there is capacity for it."""
    deadline = time.monotonic() + 20
    while True:
        call = stub.Sample.future(LARGE, timeout=30)
        with contextlib.suppress(grpc.RpcError):
            return call.result()
        if call.code() != grpc.StatusCode.RESOURCE_EXHAUSTED or time.monotonic() > deadline:
            raise AssertionError(call)
        time.sleep(0.1)


def test_calls_beyond_the_capacity_are_shed_at_once_with_a_time_to_retry(narrow):
    with stub_of(narrow.target) as stub:
        calls = concurrent_calls(stub, 12)
        good = [call for call in calls if call.code() == grpc.StatusCode.OK]
        bad = [call for call in calls if call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED]
        assert len(good) + len(bad) == 12
        assert good
        assert bad
        for call in bad:
            pushback = dict(call.trailing_metadata())["grpc-retry-pushback-ms"]
            retry = details(call, error_details_pb2.RetryInfo)
            assert retry.retry_delay.ToMilliseconds() == int(pushback)
            assert 50 <= int(pushback) <= 5000
            assert details(call, error_details_pb2.ErrorInfo).reason == "OVERLOADED"
        assert stub.Sample(pb.SampleRequest(count=1)).images


def test_a_running_stream_waits_for_capacity_and_is_not_shed(narrow):
    with stub_of(narrow.target) as stub, concurrent.futures.ThreadPoolExecutor(1) as pool:
        request = pb.SampleStreamRequest(
            request=pb.SampleRequest(count=40_000, seed=1, format=pb.IMAGE_FORMAT_UINT8),
            chunk_rows=2000,
        )

        stream = stub.SampleStream(request)
        first = next(stream).response.images.tensor.shape[0]
        rest = pool.submit(lambda: sum(reply.response.images.tensor.shape[0] for reply in stream))
        unary = pb.SampleRequest(count=700, seed=1)
        codes = [call.code() for _ in range(5) for call in concurrent_calls(stub, 4, unary)]
        assert set(codes) == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert first + rest.result(120) == 40_000


def test_a_call_whose_deadline_passes_in_the_queue_frees_its_capacity(narrow):
    with stub_of(narrow.target) as stub:
        for _ in range(5):
            with pytest.raises(grpc.RpcError) as caught:
                stub.Sample(LARGE, timeout=0.01)
            assert caught.value.code() in (
                grpc.StatusCode.DEADLINE_EXCEEDED,
                grpc.StatusCode.RESOURCE_EXHAUSTED,
            )
        assert retried_until_admitted(stub).images.tensor.shape[0] == 4096


def test_cancelled_calls_free_their_capacity(narrow):
    with stub_of(narrow.target) as stub:
        for _ in range(10):
            call = stub.Sample.future(LARGE)
            time.sleep(0.005)
            call.cancel()
        assert retried_until_admitted(stub).images.tensor.shape[0] == 4096


@pytest.mark.usefixtures("each_transport")
def test_a_request_larger_than_the_queue_is_computed_when_it_is_alone(models, tmp_path):
    with (
        Server(models, tmp_path / "log", "--max-queue-rows", "10").wait_until_serving() as server,
        stub_of(server.target) as stub,
    ):
        z = standard_normal(0, 0, 500, 32)
        reply = stub.Decode(pb.DecodeRequest(latents=tensor(z)))
        assert np.prod(reply.images.tensor.shape) == 500 * 784
        info = stub.GetServerInfo(pb.GetServerInfoRequest())
        assert info.limits.max_queue_rows == 10
