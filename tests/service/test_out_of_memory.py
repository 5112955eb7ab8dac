"""Want of memory: the call is refused with a retry delay, and the server serves on."""

import re
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from service.dispatch.dispatcher import Dispatcher, new_call
from service.dispatch.rpc import Rpc
from service.dispatch.status import CallFailed
from service.models.onnx import Device, Graph
from service.models.speed import Limits, Speed
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import default_queue_bytes
from tests.support.processes import Server
from tests.support.stubs import details, images, stub_of
from tests.support.tiny import write_tiny

ROWS = 1300  # 61 MiB of images
MIB = 2**20


async def _no_memory(*_: object) -> Any:
    raise MemoryError("Unable to allocate 3.73 GiB for an array")


@pytest.mark.parametrize("kind", ["unary", "stream"])
async def test_a_memory_error_is_overload_with_a_retry_delay(kind: str) -> None:
    async def replies(*_: object) -> Any:
        yield await _no_memory()

    metrics = Metrics()
    dispatcher = Dispatcher(lambda _: "", Telemetry(metrics, None, print))
    answer: Callable[..., Any] = _no_memory if kind == "unary" else replies
    rpc = Rpc("service", "Name", answer, pb.SampleRequest, False, kind == "stream")
    call = new_call({}, "ipv4:127.0.0.1:1", time.monotonic() + 60, time.monotonic())
    with pytest.raises(CallFailed) as caught:
        await (dispatcher.unary if kind == "unary" else dispatcher.stream)(
            rpc, b"", call, _no_memory
        )
    failure = caught.value.failure
    assert (failure.status.name, failure.message) == (
        "RESOURCE_EXHAUSTED",
        "the server is out of memory",
    )
    assert dict(failure.metadata)["grpc-retry-pushback-ms"] == "1000"
    page = metrics.exposition("text/plain")[0].decode()
    assert 'latentserve_rejected_total{reason="out_of_memory"} 1.0' in page


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        ("RUNTIME_EXCEPTION : while running Gemm node. Status Message: std::bad_alloc", True),
        ("bfc_arena.cc:360 Failed to allocate memory for requested buffer of size 131", True),
        ("CUDA failure 2: out of memory ; GPU=0", True),
        ("CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0", True),
        ("CUDA failure 700: an illegal memory access was encountered ; GPU=0", False),
    ],
)
def test_errors_of_onnxruntime_for_want_of_memory_are_memory_errors(
    message: str, wanted: bool
) -> None:
    class Session:
        def run(self, *_: object) -> None:
            raise RuntimeError(message)

    graph = Graph.__new__(Graph)
    graph.name, graph.device = "decoder", Device("cpu")
    graph._session, graph._limits, graph._speed = Session(), {(): Limits(8, 8)}, Speed("cpu")
    with pytest.raises(MemoryError if wanted else RuntimeError):
        graph.run({"z": np.zeros((2, 3), np.float32)}, ("image",))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("memory")
    write_tiny(folder / "models" / "one", shape=(3, 64, 64))
    with Server(folder / "models", folder / "log", "--http-port", "0") as server:
        yield server.wait_until_serving()


def test_a_call_that_there_is_no_memory_for_is_refused_and_later_ones_are_answered(
    server: Server,
) -> None:
    process = server.process.pid
    with Client(server.target) as client:
        client.sample(2)
    size = re.search(r"VmSize:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text())
    assert size is not None
    free = resource.prlimit(process, resource.RLIMIT_AS)
    with stub_of(server.target) as stub:
        resource.prlimit(process, resource.RLIMIT_AS, (int(size[1]) * 1024 + 24 * MIB, free[1]))
        try:
            with pytest.raises(grpc.RpcError) as caught:
                stub.Sample(pb.SampleRequest(count=ROWS), timeout=60)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "out of memory" in caught.value.details()
            assert details(caught.value, error_details_pb2.RetryInfo).retry_delay.seconds == 1
            assert len(stub.Sample(pb.SampleRequest(count=1), timeout=60).images.tensor.data)
        finally:
            resource.prlimit(process, resource.RLIMIT_AS, free)
        assert len(stub.Sample(pb.SampleRequest(count=ROWS), timeout=60).images.tensor.data)
    assert server.metric("latentserve_rejected_total", reason="out_of_memory") == 1
    assert server.metric("latentserve_threads") >= 1
    assert server.metric("latentserve_max_queue_rows") == 65_536
    assert server.metric("latentserve_max_queue_bytes") >= 8 * MIB
    assert server.metric("latentserve_calls_open") == 0


def test_many_callers_of_many_rows_fit_into_a_small_container(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """As many rows as a request may have, in float32 both ways, from 16 callers at once."""
    container, rows = 256 * MIB, 4096
    folder = tmp_path_factory.mktemp("small")
    write_tiny(folder / "models" / "one", shape=(1, 28, 28))
    limit = ("--max-queue-bytes", str(default_queue_bytes(container)))
    image = images(np.random.default_rng(0).random((rows, 1, 28, 28), dtype=np.float32))
    calls = (
        ("Reconstruct", pb.ReconstructRequest(images=image)),
        ("Sample", pb.SampleRequest(count=rows)),
        ("Score", pb.ScoreRequest(images=image, draws=1)),
        ("Encode", pb.EncodeRequest(images=image)),
    )
    answered: Counter[str] = Counter()
    refused: set[grpc.StatusCode] = set()

    def call(caller: int) -> None:
        with stub_of(server.target) as stub:
            while time.monotonic() < until:
                for method, request in (*calls[caller % 4 :], *calls[: caller % 4]):
                    try:
                        getattr(stub, method)(request, timeout=60)
                        answered[method] += 1
                    except grpc.RpcError as error:
                        refused.add(error.code())
                        time.sleep(0.05)

    with Server(folder / "models", folder / "log", *limit) as server:
        server.wait_until_serving()
        until = time.monotonic() + 4
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(call, range(16)))
        peak = re.search(
            r"VmHWM:\s+(\d+) kB", Path(f"/proc/{server.process.pid}/status").read_text()
        )
    assert peak is not None
    assert int(peak[1]) * 1024 < container
    assert answered
    assert refused <= {grpc.StatusCode.RESOURCE_EXHAUSTED}
