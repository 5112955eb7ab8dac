"""Retries of both clients: lost connections, absent servers and full servers."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from latentserve.client import (
    Client,
    InternalError,
    ResourceExhausted,
    Retry,
    ServerError,
    Unavailable,
)
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.clients import KINDS, connect
from tests.support.flaky import CuttingProxy, Failure, Flaky, serving

CODES = grpc.StatusCode
LOST = (CODES.UNAVAILABLE, CODES.INTERNAL, CODES.CANCELLED, CODES.UNKNOWN, CODES.ABORTED)
QUICK = Retry(initial_seconds=0.01, most_seconds=0.05)


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def free_port():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return unused.getsockname()[1]


@pytest.mark.parametrize("code", LOST)
def test_a_lost_call_is_retried_for_every_status(kind, code):
    flaky = Flaky(2, failure=Failure(code))
    with serving(flaky) as target, connect(kind, target, retry=QUICK) as client:
        assert client.info().version == "9"
    assert flaky.calls == 3


@pytest.mark.parametrize("code", LOST)
def test_a_lost_stream_is_resumed_for_every_status(kind, code):
    """Behind Envoy it is INTERNAL (RST_STREAM with error code 2) if the server was killed."""
    flaky = Flaky(3, failure=Failure(code))
    with serving(flaky) as target, connect(kind, target, retry=QUICK) as client:
        chunks = list(client.sample_stream(6, seed=1, offset=10))
    assert [chunk.latents[0, 0] for chunk in chunks] == [10, 11, 12, 13, 14, 15]
    assert flaky.calls == 4


def test_an_error_info_of_another_domain_does_not_prevent_a_retry(kind):
    flaky = Flaky(1, failure=Failure(CODES.INTERNAL, domain="proxy.example"))
    with serving(flaky) as target, connect(kind, target, retry=QUICK) as client:
        assert client.info().version == "9"


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (Failure(CODES.INTERNAL, domain="latentserve"), InternalError),
        (Failure(CODES.PERMISSION_DENIED), ServerError),
        (Failure(CODES.RESOURCE_EXHAUSTED), ResourceExhausted),
    ],
)
def test_definite_errors_are_not_retried(kind, failure, error):
    flaky = Flaky(9, failure=failure)
    with serving(flaky) as target, connect(kind, target, retry=QUICK) as client:
        with pytest.raises(error) as caught:
            client.info()
        assert flaky.calls == 1
        with pytest.raises(error):
            list(client.sample_stream(6, seed=1))
        assert flaky.calls == 2
    assert caught.value.answered == bool(failure.domain)


def test_a_reload_is_not_retried(kind):
    flaky = Flaky(9)
    with serving(flaky) as target, connect(kind, target) as client, pytest.raises(Unavailable):
        client.reload()
    assert flaky.calls == 1


def test_a_call_lost_in_the_middle_of_its_reply_is_retried(kind):
    """GRPC's own retries end with the first header of a reply."""
    large = pb.GetServerInfoResponse(version="9" * 12_000_000)
    with (
        serving(Flaky(0, large)) as target,
        CuttingProxy(target, cuts=2, after_bytes=1_000_000) as proxy,
        connect(kind, proxy.target) as client,
    ):
        assert client.info().version == large.version
        assert proxy.connections == 3


def test_calls_survive_a_restart_of_more_than_a_second(kind, free_port):
    """The four attempts of gRPC's retry policy ended after 0.7 seconds."""
    flaky = Flaky(0)
    with connect(kind, f"127.0.0.1:{free_port}") as client, ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        version = pool.submit(lambda: client.info().version)
        time.sleep(1.3)
        with serving(flaky, free_port):
            assert version.result(20) == "9"
            # No more than the longest back-off and gRPC's own, each up to a second.
            assert time.monotonic() - began < 5.0


def test_an_absent_server_is_named_when_the_patience_ends(kind, free_port):
    retry = Retry(patience_seconds=0.5)
    with connect(kind, f"127.0.0.1:{free_port}", retry=retry) as client:
        began = time.monotonic()
        with pytest.raises(Unavailable, match=f"127.0.0.1:{free_port} cannot be reached"):
            client.info()
        assert 0.5 <= time.monotonic() - began < 3.0


def test_the_budget_limits_retries_of_an_overloaded_server(kind):
    full = Failure(CODES.RESOURCE_EXHAUSTED, domain="latentserve", pushback_ms=10)
    flaky = Flaky(10**6, failure=full)
    with (
        serving(flaky) as target,
        connect(kind, target, retry=Retry(patience_seconds=0.5)) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        for call in [pool.submit(client.info) for _ in range(8)]:
            with pytest.raises(ResourceExhausted):
                call.result(20)
    # 5 at once, and one every two seconds.
    assert flaky.calls - 8 <= 6


class Narrow(Flaky):
    """Server that admits three calls at a time, each of 30 ms, and refuses others."""

    def __init__(self):
        super().__init__(0, failure=Failure(CODES.RESOURCE_EXHAUSTED, "latentserve", 10))
        self.refused = 0
        self._room = threading.Semaphore(3)

    def _fails(self, context):
        super()._fails(context)
        if not self._room.acquire(blocking=False):
            self.refused += 1
            return True
        time.sleep(0.03)
        self._room.release()
        return False


def test_callers_of_a_full_server_take_turns(kind):
    """Without turns, three callers kept the others out by calling again at once."""
    narrow = Narrow()
    with serving(narrow) as target, connect(kind, target) as client:
        ends = time.monotonic() + 2.0

        def calls(_number):
            answered = 0
            while time.monotonic() < ends:
                client.info()
                answered += 1
            return answered

        with ThreadPoolExecutor(8) as pool:
            answered = list(pool.map(calls, range(8)))
    assert min(answered) > 0.4 * sum(answered) / 8, answered
    assert narrow.refused <= 10 + 0.3 * sum(answered)


CALLS = [lambda c: c.info(), lambda c: next(c.sample_stream(3))]


def error_at_close(kind, port, call):
    """The error of a call that is under way when its client is closed."""
    with connect(kind, f"127.0.0.1:{port}") as client, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(call, client)
        time.sleep(0.5)
        (client.close if kind == "sync" else client.aclose)()
        with pytest.raises(ServerError) as caught:
            waiting.result(3)
    return caught.value


@pytest.mark.parametrize("call", CALLS)
def test_closing_a_client_ends_its_waiting_calls(kind, free_port, call):
    error = error_at_close(kind, free_port, call)
    # The second where the client was closed during an attempt, and not between two.
    assert isinstance(error, Unavailable) or error.code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("call", CALLS)
def test_closing_a_client_ends_its_calls_to_a_server_that_is_silent(kind, call):
    """grpc.aio cancels the calls of a channel that is closed, as if their callers had been."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        error = error_at_close(kind, silent.getsockname()[1], call)
    assert error.code is grpc.StatusCode.CANCELLED


def test_a_client_opens_the_requested_number_of_connections(kind):
    flaky = Flaky(0)
    with serving(flaky) as target:
        for _ in range(2):  # clients do not share connections
            with connect(kind, target, connections=3) as client:
                for _ in range(6):
                    client.info()
                list(client.sample_stream(2, seed=1))
        assert len(flaky.peers) == 6
        with connect(kind, target) as client:
            for _ in range(3):
                client.info()
        assert len(flaky.peers) == 7
    with pytest.raises(ValueError, match="connections: got 0, wanted at least 1"):
        connect(kind, target, connections=0)


def test_threads_can_share_a_client_with_several_connections():
    flaky = Flaky(3)
    with serving(flaky) as target, Client(target, connections=2) as client:
        barrier = threading.Barrier(8)

        def calls(_number):
            barrier.wait()
            return [client.info().version for _ in range(5)]

        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(calls, range(8))) == [["9"] * 5] * 8
    assert flaky.calls == 43
