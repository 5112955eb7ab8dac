"""Calls that the dispatcher starts without a task, because there is a plan for their requests."""

import asyncio
from typing import Any

import numpy as np
import pytest

from bundle import open_bundle
from latentserve._client import codec
from latentserve.v1 import latent_service_pb2 as pb
from service.api.servicer import Servicer
from service.dispatch.dispatcher import ENDED, Dispatcher
from service.dispatch.rpc import Rpc, rpcs_of
from service.dispatch.status import CallFailed, RpcStatus, too_large
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.engine import Engine
from service.engine.entry import QueueEntry
from service.errors import Status, Unauthenticated
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Models
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from tests.support.tiny import write_tiny

SHAPE, DIM = (1, 4, 4), 3
LATENTS = np.ones((2, DIM), np.float32)


class Bench:
    """A dispatcher, and what becomes of its calls."""

    def __init__(self, model: Any, *, traces: bool = False):
        metrics = Metrics()
        tracing: Any = object() if traces else None
        telemetry = Telemetry(metrics, tracing, lambda *_: None)
        self.admission = Admission(8, 2**20)
        self.engine = Engine(self.admission, telemetry)
        models = Models("tiny", {"tiny": {1: model}})
        servicer = Servicer(self.engine, lambda: models, Settings())
        service = pb.DESCRIPTOR.services_by_name["LatentService"]
        self.rpcs = {rpc.name: rpc for rpc in rpcs_of(service, servicer)}
        self.dispatcher = Dispatcher(self._authenticate, telemetry)
        self.replies: list[bytes] = []
        self.ends: list[RpcStatus | None] = []
        self._metrics = metrics

    def _authenticate(self, authorization: str | None) -> str:
        if authorization == "wrong":
            raise Unauthenticated("wrong token")
        return "someone"

    def start(self, request: Any, call: Call | None = None, rpc: Rpc | None = None) -> Any:
        raw = request if isinstance(request, bytes) else request.SerializeToString()
        return self.dispatcher.start(
            rpc or self.rpcs["Decode"],
            raw,
            call or Call(),
            lambda chunks: self.replies.append(b"".join(chunks)),
            self.ends.append,
        )

    def counted(self) -> dict[str, float]:
        """Number of ended calls by their code."""
        text = self._metrics.exposition("")[0].decode()
        found: dict[str, float] = {}
        for line in text.splitlines():
            if line.startswith("latentserve_requests_total{"):
                code = line.partition('code="')[2].partition('"')[0]
                found[code] = found.get(code, 0) + float(line.rpartition(" ")[2])
        return found


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = write_tiny(tmp_path_factory.mktemp("models") / "tiny", shape=SHAPE, dim=DIM)
    return load_model(open_bundle(folder), Device("cpu"))


@pytest.fixture
def bench(model):
    bench = Bench(model)
    yield bench
    assert (bench.admission.rows, bench.admission.size) == (0, 0)
    bench.engine.close()


def decode(latents: Any = LATENTS, **more: Any) -> pb.DecodeRequest:
    return pb.DecodeRequest(latents=codec.to_tensor(latents), **more)


async def ended(bench: Bench) -> None:
    """Waits until no call is open; fails if one stays open."""
    await asyncio.wait_for(bench.dispatcher.finished(), 10)


async def test_a_request_with_a_plan_is_answered_without_a_task(bench):
    tasks = len(asyncio.all_tasks())
    call = Call()
    future = bench.start(decode(), call)
    assert isinstance(future, QueueEntry)
    assert len(asyncio.all_tasks()) == tasks
    assert bench.admission.rows == 2
    await ended(bench)
    reply = pb.DecodeResponse.FromString(bench.replies[0])
    assert list(reply.images.tensor.shape) == [2, *SHAPE]
    assert bench.ends == [None]
    assert bench.counted() == {"OK": 1}
    assert (call.token, call.rows, call.model) == ("someone", 2, "tiny")


async def test_the_reply_is_that_of_a_call_with_a_task(bench):
    bench.start(decode())
    await ended(bench)
    replies: list[bytes] = []
    await bench.dispatcher.unary(
        bench.rpcs["Decode"],
        decode().SerializeToString(),
        Call(),
        lambda chunks: replies.append(b"".join(chunks)),
    )
    started, awaited = (pb.DecodeResponse.FromString(raw) for raw in (*bench.replies, *replies))
    for reply in (started, awaited):
        assert reply.timing.total_seconds > 0
        assert reply.timing.batch_rows == 2
        reply.ClearField("timing")
    assert started == awaited
    assert bench.counted() == {"OK": 2}


async def test_a_request_without_a_plan_is_returned_for_a_task_and_counted_once(bench):
    request = bench.start(decode(unclipped=True))
    assert request == decode(unclipped=True)
    assert bench.counted() == {}
    await bench.dispatcher.unary(bench.rpcs["Decode"], request, Call(), lambda _chunks: None)
    assert bench.counted() == {"OK": 1}


async def test_a_traced_call_gets_a_task(model):
    bench = Bench(model, traces=True)
    assert isinstance(bench.start(decode()), pb.DecodeRequest)
    bench.engine.close()


@pytest.mark.parametrize(
    ("request_", "call", "status"),
    [
        (b"\xff", Call(), Status.INVALID_ARGUMENT),
        (decode(), Call(metadata={"authorization": "wrong"}), Status.UNAUTHENTICATED),
        (decode(np.ones((9, DIM), np.float32)), Call(), Status.RESOURCE_EXHAUSTED),
        (decode(model={"name": "other"}), Call(), Status.NOT_FOUND),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_a_call_that_fails_at_once_is_counted_and_closed(bench, request_, call, status):
    blocked = bench.start(decode())  # a call is always admitted while nothing is in flight
    with pytest.raises(CallFailed) as failed:
        bench.start(request_, call)
    assert failed.value.failure.status is status
    assert bench.counted() == {status.name: 1}
    blocked.cancel()
    await ended(bench)


async def test_invalid_values_which_only_the_batch_finds_end_the_call(bench):
    bad = LATENTS.copy()
    bad[1, 0] = np.nan
    bench.start(decode(bad))
    bench.start(decode())
    await ended(bench)
    failure, fine = bench.ends
    assert failure is not None
    assert failure.status is Status.INVALID_ARGUMENT
    assert fine is None
    assert len(bench.replies) == 1
    assert bench.counted() == {"INVALID_ARGUMENT": 1, "OK": 1}


@pytest.mark.parametrize(
    ("message", "code"), [(None, "CANCELLED"), (ENDED, "UNAVAILABLE")], ids=["caller", "server"]
)
async def test_a_cancelled_call_is_neither_answered_nor_told(bench, message, code):
    future = bench.start(decode())
    future.cancel(message)
    await ended(bench)
    assert (bench.replies, bench.ends) == ([], [])
    assert bench.counted() == {code: 1}


async def test_a_call_whose_deadline_has_passed_when_it_is_cancelled_is_late(bench):
    bench.start(decode(), Call(deadline=0.0)).cancel()
    await ended(bench)
    assert bench.counted() == {"DEADLINE_EXCEEDED": 1}


@pytest.mark.parametrize(
    ("error", "code"),
    [(too_large(2, 1), "RESOURCE_EXHAUSTED"), (RuntimeError("a bug"), "INTERNAL")],
    ids=["too large", "bug"],
)
async def test_an_error_of_sending_is_the_calls(bench, error, code):
    def send(_chunks: Any) -> None:
        raise error

    rpc, raw = bench.rpcs["Decode"], decode().SerializeToString()
    bench.dispatcher.start(rpc, raw, Call(request_id="abc"), send, bench.ends.append)
    await ended(bench)
    (failure,) = bench.ends
    assert failure is not None
    assert failure.status.name == code
    assert bench.counted() == {code: 1}
