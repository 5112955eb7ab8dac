"""Lame duck, drain and connection age of both transports: no call is cut off without a status."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2

from latentserve.v1 import latent_service_pb2 as pb
from service.engine.call import Call
from tests.support.http2_client import RawClient
from tests.support.http2_peer import message
from tests.support.transports import (
    FACTORIES,
    Handlers,
    Running,
    both_streams,
    loaded,
    server_stream,
    serving,
    unary,
)
from tests.support.waiting import wait_until_async

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
SERVING, NOT_SERVING = (
    health_pb2.HealthCheckResponse.SERVING,
    health_pb2.HealthCheckResponse.NOT_SERVING,
)
SMALL = pb.ListModelsResponse(models=[pb.ModelInfo()]).SerializeToString()


@pytest.fixture(params=list(FACTORIES))
def kind(request: pytest.FixtureRequest) -> str:
    """One transport, and then the other."""
    return str(request.param)


def reason(error: grpc.aio.AioRpcError) -> str:
    """Reason of the ErrorInfo; empty if there is none."""
    trailers = dict(error.trailing_metadata() or ())
    blob: Any = trailers.get("grpc-status-details-bin", b"")
    for packed in status_pb2.Status.FromString(blob).details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            assert info.domain == "latentserve"
            return info.reason
    return ""


async def health(running: Running) -> int:
    async with running.channel() as channel:
        raw = await unary(channel, "/grpc.health.v1.Health/Check")(b"", timeout=5)
        return health_pb2.HealthCheckResponse.FromString(raw).status


def endless(*chunks: bytes) -> Any:
    """A handler that streams some chunks and then waits for ever."""

    async def stream(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        for chunk in chunks:
            yield (chunk,)
        await asyncio.Event().wait()

    return stream


async def _read_all(call: Any) -> None:
    while await call.read() is not grpc.aio.EOF:
        pass
    await call


async def quick(_request: Any, _call: Call) -> tuple[bytes]:
    return (b"",)


# ------------------------------------------------------------------ lame duck


async def test_a_lame_duck_is_not_serving_and_answers(kind: str) -> None:
    async with (
        serving(kind, Handlers(list_models=quick)) as running,
        running.channel() as before,
    ):
        await running.transport.show(loaded())
        assert await health(running) == SERVING
        watch = server_stream(before, "/grpc.health.v1.Health/Watch")(b"", timeout=5)
        assert health_pb2.HealthCheckResponse.FromString(await watch.read()).status == SERVING
        running.transport.lame_duck()
        assert health_pb2.HealthCheckResponse.FromString(await watch.read()).status == NOT_SERVING
        watch.cancel()
        await running.transport.show(loaded())  # a reload changes nothing
        assert await health(running) == NOT_SERVING
        async with running.channel() as after:
            for channel in (before, after):
                assert await unary(channel, "ListModels")(b"", timeout=5) == b""


# ---------------------------------------------------------------------- drain


@pytest.mark.parametrize("read", ["all", "part"])
async def test_streams_that_outlast_the_drain_end_as_unavailable(kind: str, read: str) -> None:
    """Also one whose client has received a message in part, as it does not read."""
    chunk = bytes(100 if read == "all" else 2**22)
    async with (
        serving(kind, Handlers(sample_stream=endless(chunk, chunk))) as running,
        running.channel() as channel,
    ):
        call = server_stream(channel, "SampleStream")(b"", timeout=30)
        for _ in range(2 if read == "all" else 1):
            assert await call.read() == chunk
        await asyncio.sleep(0.1)
        await running.transport.drain(0.2, asyncio.Event())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await _read_all(call)
        labels = 'code="UNAVAILABLE",model="",rpc="SampleStream",transport="grpc"'
        counted = f"latentserve_requests_total{{{labels}}} 1.0"
        assert counted in running.page()
        error = caught.value
        assert error.code() is UNAVAILABLE
        if kind == "http2" or read == "all":  # grpcio's trailers wait behind what is not read
            assert reason(error) == "NOT_READY"
            assert "stopping" in (error.details() or "")


@pytest.mark.parametrize("how", ["time limit", "forced"])
async def test_unary_calls_and_watches_end_as_unavailable_too(kind: str, how: str) -> None:
    entered = asyncio.Event()

    async def slow(_request: Any, _call: Call) -> Any:
        entered.set()
        await asyncio.Event().wait()

    async with (
        serving(kind, Handlers(list_models=slow)) as running,
        running.channel() as channel,
    ):
        call = unary(channel, "ListModels")(b"", timeout=30)
        watch = server_stream(channel, "/grpc.health.v1.Health/Watch")(b"", timeout=30)
        await watch.read()
        await entered.wait()
        force_stop = asyncio.Event()
        drain = asyncio.create_task(
            running.transport.drain(0.2 if how == "time limit" else 30, force_stop)
        )
        if how == "forced":
            await asyncio.sleep(0.1)
            force_stop.set()
        for ended in (call, watch):
            assert await ended.code() is UNAVAILABLE
            assert "stopping" in await ended.details()
        await asyncio.wait_for(drain, 5)


async def test_a_drain_waits_for_replies_and_not_for_watches(kind: str) -> None:
    entered, leave = asyncio.Event(), asyncio.Event()
    # grpcio closes a connection without reading on, which can cut off the end of a large reply.
    size = 2**20 if kind == "http2" else 1000

    async def slow(_request: Any, _call: Call) -> tuple[bytes]:
        entered.set()
        await leave.wait()
        return (bytes(size),)

    async with (
        serving(kind, Handlers(encode=slow)) as running,
        running.channel() as channel,
    ):
        watch = server_stream(channel, "/grpc.health.v1.Health/Watch")(b"", timeout=30)
        await watch.read()
        call = unary(channel, "Encode")(b"", timeout=30)
        await entered.wait()
        drain = asyncio.create_task(running.transport.drain(30, asyncio.Event()))
        await asyncio.sleep(0.1)
        leave.set()
        assert await call == bytes(size)
        began = time.monotonic()
        await asyncio.wait_for(drain, 5)
        assert time.monotonic() - began < 4.5  # the client may keep its connection for 4 s


async def test_a_call_between_the_two_goaways_is_answered() -> None:
    """The first one promises it: its client does not know yet that the connection closes."""
    async with serving("http2", Handlers(list_models=quick)) as running:
        raw = await asyncio.to_thread(RawClient, running.target)
        with raw:
            await asyncio.to_thread(raw.call, "ListModels", b"")
            drain = asyncio.create_task(running.transport.drain(30, asyncio.Event()))
            await asyncio.sleep(0.05)  # the GOAWAY and the PING after it have been sent, not read
            reply = await asyncio.to_thread(raw.call, "ListModels", b"")
            assert (reply.status, reply.reset) == (0, None)
            raw.socket.close()
            await asyncio.wait_for(drain, 5)


async def test_a_connection_that_the_kernel_has_accepted_is_answered() -> None:
    async with serving("http2", Handlers(list_models=quick)) as running:
        raw = RawClient(running.target)  # in this thread: the event loop has not seen it
        with raw:
            number = raw.open("ListModels")
            raw.send(number, message(b""), ends=True)
            drain = asyncio.create_task(running.transport.drain(30, asyncio.Event()))
            reply = await asyncio.to_thread(raw.wait, number)
            assert reply.status == 0
            raw.socket.close()
            await asyncio.wait_for(drain, 5)


async def test_a_forced_stop_does_not_wait_for_clients_to_leave() -> None:
    async with serving("http2", Handlers(list_models=quick)) as running:
        raw = await asyncio.to_thread(RawClient, running.target)
        with raw:
            await asyncio.to_thread(raw.call, "ListModels", b"")
            force_stop = asyncio.Event()
            drain = asyncio.create_task(running.transport.drain(30, force_stop))
            await asyncio.to_thread(raw.wait_for, lambda: len(raw.goaways) == 2)
            await asyncio.sleep(0.2)
            assert not drain.done()
            force_stop.set()
            await asyncio.wait_for(drain, 1)


async def test_a_reply_that_is_not_read_is_cut_at_the_end_of_the_drain() -> None:
    async def large(_request: Any, _call: Call) -> tuple[bytes]:
        return (bytes(2**20),)

    async with serving("http2", Handlers(list_models=large)) as running:
        raw = await asyncio.to_thread(RawClient, running.target, 1000, grants=False)
        with raw:
            number = raw.open("ListModels")
            raw.send(number, message(b""), ends=True)
            await asyncio.sleep(0.1)
            assert running.admission.size > 2**20 - 1000
            drain = asyncio.create_task(running.transport.drain(0.3, asyncio.Event()))
            reply = await asyncio.to_thread(raw.wait, number)
            assert (len(reply.body), reply.status, reply.ended) == (1000, 14, True)
            assert running.admission.size == 0
            raw.socket.close()
            await asyncio.wait_for(drain, 5)


async def test_a_stream_that_is_cut_while_its_caller_does_not_read_is_unavailable() -> None:
    async def many(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        while True:
            yield (bytes(2**20),)

    async with serving("http2", Handlers(sample_stream=many)) as running:
        raw = await asyncio.to_thread(RawClient, running.target, 1000, grants=False)
        with raw:
            number = raw.open("SampleStream")
            raw.send(number, message(b""), ends=True)
            await wait_until_async(lambda: running.admission.size > 2**20 - 1001)
            drain = asyncio.create_task(running.transport.drain(0.1, asyncio.Event()))
            assert (await asyncio.to_thread(raw.wait, number)).status == 14
            raw.socket.close()
            await asyncio.wait_for(drain, 5)
            (line,) = (line for line in running.page().splitlines() if "requests_total{" in line)
            labels = 'code="UNAVAILABLE",model="",rpc="SampleStream",transport="grpc"'
            assert line == f"latentserve_requests_total{{{labels}}} 1.0"


@pytest.mark.parametrize("rpc", ["ListModels", "SampleStream"])
async def test_a_reply_above_the_limit_is_counted_as_what_its_caller_gets(rpc: str) -> None:
    async def large(_request: Any, _call: Call) -> tuple[bytes]:
        return (bytes(5000),)

    async def many(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        yield (bytes(5000),)

    handlers = Handlers(list_models=large, sample_stream=many)
    async with serving("http2", handlers, max_message_bytes=4096) as running:
        raw = await asyncio.to_thread(RawClient, running.target)
        with raw:
            number = raw.open(rpc)
            raw.send(number, message(b""), ends=True)
            assert (await asyncio.to_thread(raw.wait, number)).status == 8
        labels = f'code="RESOURCE_EXHAUSTED",model="",rpc="{rpc}",transport="grpc"'
        assert f"latentserve_requests_total{{{labels}}} 1.0" in running.page()


# ------------------------------------------------------------------------ age


async def test_beyond_its_age_a_connection_ends_calls_that_stand_still(kind: str) -> None:
    async def echo(requests: Any, _call: Call) -> AsyncIterator[Any]:
        async for _ in requests:
            yield (b"x",)

    settings = {"max_connection_age_seconds": 1, "max_connection_age_grace_seconds": 0.3}
    async with (
        serving(kind, Handlers(encode_stream=echo), **settings) as running,
        running.channel() as channel,
    ):
        method = both_streams(channel, "EncodeStream")
        idle, busy = method(), method(timeout=30)  # a call with a deadline ends anyway
        for call in (idle, busy):
            await call.write(b"")
            await call.read()
        began = time.monotonic()
        ended = asyncio.ensure_future(idle.code())
        while time.monotonic() - began < 1.9:
            await busy.write(b"")
            assert await busy.read() == b"x"
            await asyncio.sleep(0.1)
        assert ended.done()
        assert ended.result() is UNAVAILABLE
        assert "maximum age" in await idle.details()
        await busy.done_writing()
        assert await busy.code() is grpc.StatusCode.OK


@pytest.mark.slow
async def test_beyond_its_age_a_connection_lets_calls_be_computed(kind: str) -> None:
    """One with a deadline may even idle."""

    async def slow(_request: Any, _call: Call) -> tuple[bytes]:
        await asyncio.sleep(2.5)
        return (b"",)

    async def one(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        await asyncio.sleep(2.5)
        yield (b"",)

    async def answers(requests: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        async for _ in requests:
            await asyncio.sleep(2.5)
            yield (b"",)

    handlers = Handlers(list_models=slow, sample_stream=one, encode_stream=answers)
    settings = {"max_connection_age_seconds": 1, "max_connection_age_grace_seconds": 0.3}
    async with (
        serving(kind, handlers, **settings) as running,
        running.channel() as channel,
        asyncio.timeout(15),
    ):
        began = time.monotonic()
        idle = both_streams(channel, "EncodeStream")(timeout=3)
        computed = both_streams(channel, "EncodeStream")()
        await computed.write(b"")
        stream = server_stream(channel, "SampleStream")(b"")
        watch = server_stream(channel, "/grpc.health.v1.Health/Watch")(b"")
        await watch.read()
        assert await unary(channel, "ListModels")(b"") == b""
        assert await stream.read() == b""
        assert await computed.read() == b""
        assert await watch.code() is UNAVAILABLE
        # Both sides end it at its deadline. Where grpcio's server, which then closes the aged
        # connection, is the faster, the client may see UNAVAILABLE.
        assert "maximum age" not in await idle.details()
        assert time.monotonic() - began > 2.9


async def test_the_maximum_of_streams_is_announced_and_held(kind: str) -> None:
    async with serving(
        kind, Handlers(sample_stream=endless(b"")), max_streams_per_connection=2
    ) as running:
        raw = await asyncio.to_thread(RawClient, running.target)
        with raw:
            numbers = []
            for _ in range(3):
                numbers.append(raw.open("SampleStream"))
                raw.send(numbers[-1], message(b""), ends=True)
            await asyncio.to_thread(
                raw.wait_for, lambda: raw.h2.remote_settings.max_concurrent_streams == 2
            )
            reply = await asyncio.to_thread(raw.wait, numbers[-1])
            assert reply.reset in (7, 11)  # REFUSED_STREAM; grpcio has ENHANCE_YOUR_CALM
