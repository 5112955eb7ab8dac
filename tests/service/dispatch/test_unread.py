"""Replies that are not read: counted as memory in flight, and dropped under pressure."""

import asyncio
import gc
import socket
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from latentserve.v1 import latent_service_pb2 as pb
from service.dispatch import unread
from service.engine.call import Call
from service.errors import Overloaded
from service.transport.framing import MessageBuffer
from tests.support.http2_client import RawClient
from tests.support.http2_peer import message
from tests.support.processes import Server
from tests.support.stubs import stub_of
from tests.support.tiny import write_tiny
from tests.support.transports import (
    FACTORIES,
    Handlers,
    Running,
    loaded,
    server_stream,
    serving,
    unary,
)
from tests.support.waiting import wait_until, wait_until_async

MIB = 2**20
RESOURCE_EXHAUSTED, UNAVAILABLE = 8, 14


@pytest.fixture(params=list(FACTORIES))
def kind(request: pytest.FixtureRequest) -> str:
    """One transport, and then the other."""
    return str(request.param)


async def mebibyte(_request: Any, _call: Call) -> tuple[bytes]:
    return (bytes(MIB),)


async def client(running: Running, window: int = 1000) -> RawClient:
    """A connection whose streams' windows never grow."""
    return await asyncio.to_thread(RawClient, running.target, window, grants=False)


def ask(raw: RawClient, method: str = "ListModels") -> int:
    number = raw.open(method)
    raw.send(number, message(b""), ends=True)
    return number


# ------------------------------------------------------------------- counting


async def test_unread_unary_replies_are_counted_until_their_callers_leave(kind: str) -> None:
    async with serving(kind, Handlers(list_models=mebibyte)) as running:
        raw = await client(running)
        with raw:
            for _ in range(3):
                ask(raw)
            await wait_until_async(lambda: running.admission.size > 2.9 * MIB)
            assert running.admission.size <= 3 * MIB + 100
        await wait_until_async(lambda: running.admission.size == 0)


async def test_unread_replies_are_freed_when_their_callers_leave(kind: str) -> None:
    """At once, and not when a server's garbage collector runs, which is seldom."""
    async with serving(kind, Handlers(list_models=mebibyte)) as running:
        gc.collect()
        gc.disable()
        tracemalloc.start()
        try:
            raw = await client(running)
            with raw:
                for _ in range(5):
                    ask(raw)
                await wait_until_async(lambda: running.admission.size > 4.9 * MIB)
            await wait_until_async(lambda: running.admission.size == 0)
            await wait_until_async(lambda: tracemalloc.get_traced_memory()[0] < 2 * MIB, seconds=5)
        finally:
            tracemalloc.stop()
            gc.enable()


async def test_replies_that_are_read_are_not_counted_any_more(kind: str) -> None:
    async def three(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        for _ in range(3):
            yield (bytes(MIB),)

    async with (
        serving(kind, Handlers(list_models=mebibyte, sample_stream=three)) as running,
        running.channel() as channel,
    ):
        for _ in range(5):
            assert len(await unary(channel, "ListModels")(b"", timeout=10)) == MIB
        call = server_stream(channel, "SampleStream")(b"", timeout=10)
        assert [len(reply) async for reply in call] == [MIB] * 3
        await wait_until_async(lambda: running.admission.size == 0)


async def test_a_stream_that_is_not_read_is_counted(kind: str) -> None:
    async def many(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        for _ in range(100):
            yield (bytes(MIB),)

    async with serving(kind, Handlers(sample_stream=many)) as running:
        raw = await client(running)
        with raw:
            ask(raw, "SampleStream")
            await wait_until_async(lambda: running.admission.size > MIB - 1001)
            await asyncio.sleep(0.1)
            assert running.admission.size <= MIB + 5
        await wait_until_async(lambda: running.admission.size == 0)


async def test_what_the_kernel_does_not_take_is_counted() -> None:
    """The windows of HTTP/2 are open, and TCP's is closed."""
    async with serving("http2", Handlers(list_models=mebibyte)) as running:
        raw = await client(running, 2**30)
        with raw:
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            for _ in range(40):
                ask(raw)
            await wait_until_async(lambda: running.admission.size > 16 * MIB)
        await wait_until_async(lambda: running.admission.size == 0)


async def test_a_reply_without_room_is_refused_with_a_time_to_retry(kind: str) -> None:
    async with (
        serving(kind, Handlers(list_models=mebibyte), max_bytes=2 * MIB + 1000) as running,
        running.channel() as channel,
    ):
        raw = await client(running)
        with raw:
            numbers = [ask(raw) for _ in range(5)]
            await asyncio.to_thread(
                raw.wait_for, lambda: sum(raw.replies[number].over for number in numbers) >= 3
            )
            refused = [raw.replies[number] for number in numbers if raw.replies[number].over]
            assert len(refused) == 3
            assert {reply.status for reply in refused} == {RESOURCE_EXHAUSTED}
            assert all("grpc-retry-pushback-ms" in reply.fields for reply in refused)
            assert running.admission.size <= 2 * MIB + 1000
            page = running.page()
            assert 'latentserve_rejected_total{reason="overloaded"} 3.0' in page
            for code, count in (("OK", 2), ("RESOURCE_EXHAUSTED", 3)):
                labels = f'code="{code}",model="",rpc="ListModels",transport="grpc"'
                assert f"latentserve_requests_total{{{labels}}} {count}.0" in page
            # Health is answered all the same, and so is a call whose reply can be sent at once.
            check = unary(channel, "/grpc.health.v1.Health/Check")
            await check(b"", timeout=5)


async def test_a_health_watch_needs_no_room_as_long_as_its_window_is_open(kind: str) -> None:
    async with (
        serving(kind, Handlers(), max_bytes=MIB) as running,
        running.channel() as channel,
    ):
        running.admission.hold(2 * MIB)
        watch = server_stream(channel, "/grpc.health.v1.Health/Watch")(b"", timeout=5)
        assert await watch.read() == b"\x08\x02"  # NOT_SERVING
        await running.transport.show(loaded())
        assert await watch.read() == b"\x08\x01"  # SERVING
        watch.cancel()


# ------------------------------------------------------------- without memory


class Uncopyable(tuple[bytes]):
    """A reply that there is no memory to copy."""

    def __iter__(self) -> Any:
        raise MemoryError


async def test_a_reply_without_memory_to_send_it_is_refused(kind: str) -> None:
    async def one(_request: Any, _call: Call) -> tuple[bytes]:
        return Uncopyable((b"reply",))

    async def many(_request: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
        yield Uncopyable((b"reply",))

    async with (
        serving(kind, Handlers(list_models=one, sample_stream=many)) as running,
        running.channel() as channel,
    ):
        for call in (
            unary(channel, "ListModels")(b"", timeout=5),
            server_stream(channel, "SampleStream")(b"", timeout=5),
        ):
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


@pytest.mark.parametrize("step", ["feed", "take"])
@pytest.mark.parametrize("method", ["ListModels", "SampleStream"])
async def test_a_request_without_memory_to_receive_it_is_refused(
    step: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: Any) -> Any:
        raise MemoryError

    monkeypatch.setattr(MessageBuffer, step, fails)
    async with serving("http2", Handlers(list_models=mebibyte)) as running:
        raw = await asyncio.to_thread(RawClient, running.target)
        with raw:
            reply = await asyncio.to_thread(raw.wait, ask(raw, method))
            assert (reply.status, reply.ended) == (RESOURCE_EXHAUSTED, True)
            assert "memory" in reply.text


# ------------------------------------------------------------------- dropping


@pytest.fixture
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unread, "STALLED_SECONDS", 0.3)
    monkeypatch.setattr(unread, "_CHECK_SECONDS", 0.05)


@pytest.mark.usefixtures("_quickly")
async def test_replies_that_stand_still_are_dropped_while_others_lack_memory() -> None:
    async with serving(
        "http2", Handlers(list_models=mebibyte), max_bytes=3 * MIB + 1000
    ) as running:
        raw = await client(running)
        with raw:
            first, second = ask(raw), ask(raw)
            await wait_until_async(lambda: running.admission.size > 1.9 * MIB)
            await asyncio.sleep(0.6)
            raw.read(0.01)
            assert not raw.replies[first].over, "dropped though nobody lacked anything"
            with pytest.raises(Overloaded):
                running.admission.enter(1, 2 * MIB)
            reply = await asyncio.to_thread(raw.wait, first)
            assert (reply.status, reply.ended, len(reply.body)) == (UNAVAILABLE, True, 1000)
            assert "not read" in reply.text
            running.admission.enter(1, 2 * MIB)
            assert not raw.replies[second].over, "one was enough"


@pytest.mark.usefixtures("_quickly")
async def test_a_reply_that_moves_is_not_dropped() -> None:
    async with serving("http2", Handlers(list_models=mebibyte), max_bytes=MIB + 1000) as running:
        raw = await client(running)
        with raw:
            number = ask(raw)
            await wait_until_async(lambda: running.admission.size > 0.9 * MIB)
            for _ in range(12):
                with pytest.raises(Overloaded):
                    running.admission.enter(1, MIB)
                raw.h2.increment_flow_control_window(5000, number)
                raw.flush()
                raw.read(0.01)
                await asyncio.sleep(0.08)
            assert not raw.replies[number].over
            raw.h2.increment_flow_control_window(2 * MIB, number)
            raw.flush()
            reply = await asyncio.to_thread(raw.wait, number)
            assert (reply.status, len(reply.body)) == (0, MIB + 5)


@pytest.mark.usefixtures("_quickly")
async def test_a_connection_whose_socket_is_not_read_is_closed() -> None:
    async with serving("http2", Handlers(list_models=mebibyte), max_bytes=8 * MIB) as running:
        raw = await client(running, 2**30)
        with raw:
            raw.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
            for _ in range(40):
                ask(raw)
            await wait_until_async(lambda: running.admission.size > 4 * MIB)
            async with asyncio.timeout(10):
                while True:
                    try:
                        running.admission.enter(1, 7 * MIB)
                    except Overloaded:
                        await asyncio.sleep(0.05)
                    else:
                        break


# --------------------------------------------------------------- whole servers


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unread")
    write_tiny(folder / "models" / "one", shape=(1, 32, 32))
    return folder


def rss(server: Server) -> int:
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * 4096


def test_memory_is_bounded_whatever_is_not_read(
    folder: Path, tmp_path: Path, transport_kind: str
) -> None:
    """100 MB of replies and streams without an end, of which 16 MiB may be in flight."""
    limit = 16 * MIB
    arguments = ("--transport", transport_kind, "--http-port", "0", "--max-queue-bytes", str(limit))
    sample = pb.SampleRequest(count=1000, seed=1)
    stream = pb.SampleStreamRequest(request=pb.SampleRequest(count=10**6), chunk_rows=250)
    with Server(folder / "models", tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        with (
            stub_of(server.target) as stub,
            RawClient(server.target, 1000, grants=False) as streaming,
            RawClient(server.target, 1000, grants=False) as calling,
        ):
            stub.Sample(sample, timeout=20)
            before = rss(server)
            for raw, method, body in (
                (streaming, "SampleStream", stream),
                (calling, "Sample", sample),
            ):
                for _ in range(25):
                    raw.send(raw.open(method), message(body.SerializeToString()), ends=True)
                deadline = time.monotonic() + 0.5
                while time.monotonic() < deadline:
                    raw.read(0.1)
            used, grown = server.metric("latentserve_queue_bytes"), rss(server) - before
            assert limit / 2 < used <= limit
            assert grown < 4 * limit
        with stub_of(server.target) as stub:
            wait_until(lambda: server.metric("latentserve_queue_bytes") == 0)
            stub.Sample(sample, timeout=20)
