"""Callers of a real server: names of tokens, and limits on what one caller has in flight."""

import json
import re
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from latentserve.v1 import latent_service_pb2 as pb
from tests.support.processes import TRANSPORTS, Server
from tests.support.stubs import details, stub_of, tensor
from tests.support.tiny import write_tiny

LOUD, QUIET, NAMELESS = "l" * 20, "q" * 20, "n" * 20
TOKENS = f"loud:{LOUD}\nquiet:{QUIET}\n{NAMELESS}\n"


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"),)


@pytest.fixture(scope="module", params=TRANSPORTS)
def server(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("callers")
    write_tiny(folder / "models" / "one", fails_above=10.0)
    (folder / "tokens").write_text(TOKENS)
    arguments = (
        *("--token-file", str(folder / "tokens"), "--transport", request.param),
        *("--max-rows-per-caller", "100", "--max-calls-per-caller", "8", "--http-port", "0"),
        # So that calls are in flight for a while.
        *("--batch-window-seconds", "0.3"),
    )
    with Server(folder / "models", folder / "log", *arguments) as server:
        assert server.origin
        with stub_of(server.target) as stub:
            for _ in range(500):
                try:
                    stub.Sample(pb.SampleRequest(count=1), metadata=bearer(NAMELESS))
                    break
                except grpc.RpcError:
                    time.sleep(0.02)
        yield server


def outcomes(target: str, token: str, counts: list[int]) -> list[grpc.RpcError | None]:
    """The errors of concurrent Sample calls."""
    ready = threading.Barrier(len(counts))

    def call(count: int) -> grpc.RpcError | None:
        with stub_of(target) as stub:
            stub.GetServerInfo(pb.GetServerInfoRequest(), metadata=bearer(token))
            ready.wait()
            try:
                stub.Sample(pb.SampleRequest(count=count), metadata=bearer(token), timeout=20)
            except grpc.RpcError as error:
                return error
        return None

    with ThreadPoolExecutor(len(counts)) as pool:
        return list(pool.map(call, counts))


@pytest.mark.parametrize(
    ("counts", "answered", "message"),
    [([60, 60, 30], 2, "than 100 .see max_rows_per_caller"), ([1] * 10, 8, "max_calls_per_caller")],
)
def test_a_caller_beyond_its_limit_is_refused_with_a_retry_delay_and_others_are_answered(
    server: Server, counts: list[int], answered: int, message: str
) -> None:
    before = server.metric("latentserve_rejected_total", reason="caller_limit")
    with ThreadPoolExecutor(1) as pool:
        quiet = pool.submit(outcomes, server.target, QUIET, [60])
        errors = [error for error in outcomes(server.target, LOUD, counts) if error is not None]
        assert quiet.result() == [None]
    assert len(counts) - len(errors) == answered
    for error in errors:
        assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert re.search(message, error.details())
        assert details(error, error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() >= 50
    after = server.metric("latentserve_rejected_total", reason="caller_limit")
    assert after - before == len(errors)


def test_the_messages_of_a_stream_beyond_the_limit_wait(server: Server) -> None:
    request = pb.SampleStreamRequest(request=pb.SampleRequest(count=300), chunk_rows=60)
    with stub_of(server.target) as stub:
        replies = list(stub.SampleStream(request, metadata=bearer(LOUD), timeout=60))
    assert [reply.response.images.tensor.shape[0] for reply in replies] == [60] * 5


def test_open_connections_streams_and_calls_are_shown(server: Server) -> None:
    request = pb.SampleStreamRequest(request=pb.SampleRequest(count=10**6))
    names = ("connections", "streams", "calls")
    with stub_of(server.target) as stub:
        replies = stub.SampleStream(request, metadata=bearer(LOUD), timeout=60)
        next(replies)
        open_now = {name: server.metric(f"latentserve_{name}_open") >= 1 for name in names}
        replies.cancel()
    # grpcio does not tell of connections and streams.
    told = {sample.name for sample in server.samples()} & {f"latentserve_{n}_open" for n in names}
    assert open_now == {name: f"latentserve_{name}_open" in told for name in names}
    assert "latentserve_calls_open" in told


def test_calls_and_rows_are_counted_by_the_names_of_tokens(server: Server) -> None:
    def counted(name: str, **labels: str) -> float:
        return server.metric(f"latentserve_caller_{name}_total", **labels)

    before = counted("calls", caller="quiet", code="OK"), counted("rows", caller="quiet")
    assert outcomes(server.target, QUIET, [7]) == [None]
    # That of the server's description has no rows.
    assert counted("calls", caller="quiet", code="OK") - before[0] == 2
    assert counted("rows", caller="quiet") - before[1] == 7
    outcomes(server.target, NAMELESS, [7])
    callers = {sample.labels["caller"] for sample in server.samples() if "caller" in sample.labels}
    assert callers <= {"loud", "quiet"}


def test_a_line_of_the_log_about_a_call_names_its_caller(server: Server) -> None:
    latents = tensor([[20.0, 20.0, 20.0]])
    with stub_of(server.target) as stub, pytest.raises(grpc.RpcError) as caught:
        stub.Decode(pb.DecodeRequest(latents=latents), metadata=bearer(QUIET), timeout=20)
    assert caught.value.code() == grpc.StatusCode.INTERNAL
    log = server.log.read_text()
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert {line["caller"] for line in lines if "request_id" in line} == {"quiet"}
    assert not re.search(f"{LOUD}|{QUIET}|{NAMELESS}", log)
