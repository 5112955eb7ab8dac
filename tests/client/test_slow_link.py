"""A large reply over a slow link: answers to pings wait behind its data."""

import asyncio
import contextlib
import queue
import threading

import pytest

from latentserve.client import Keepalive, Retry
from tests.support.clients import KINDS, connect
from tests.support.processes import Server
from tests.support.tiny import write_tiny

pytestmark = pytest.mark.slow

BYTES_PER_SECOND = 2_000_000


async def _relay(reader, writer, rate):
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(32_768):
            writer.write(data)
            await writer.drain()
            if rate:
                await asyncio.sleep(len(data) / rate)
    writer.close()


async def _serve(target, port, stopped):
    """Relays connections to a server, whose replies take their time."""
    host, _, upstream = target.rpartition(":")

    async def accepted(reader, writer):
        up_reader, up_writer = await asyncio.open_connection(host, int(upstream))
        # At the end asyncio cancels what is open, and would report a connection as failed.
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(
                _relay(reader, up_writer, None), _relay(up_reader, writer, BYTES_PER_SECOND)
            )
        # Left open, the garbage collector would warn of them during a later test.
        for open_still in (writer, up_writer):
            open_still.transport.abort()

    async with await asyncio.start_server(accepted, "127.0.0.1", 0) as listening:
        port.put(listening.sockets[0].getsockname()[1])
        await asyncio.to_thread(stopped.wait)


@pytest.fixture
def slow_target(tmp_path):
    """Address of a slow link to a server."""
    write_tiny(tmp_path / "models" / "tiny", shape=(1, 28, 28))
    port, stopped = queue.SimpleQueue(), threading.Event()
    with Server(tmp_path / "models", tmp_path / "log") as server:
        server.wait_until_serving()
        thread = threading.Thread(
            target=lambda: asyncio.run(_serve(server.target, port, stopped)), daemon=True
        )
        thread.start()
        yield f"127.0.0.1:{port.get(timeout=10)}"
        stopped.set()
        thread.join()


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_reply_over_a_slow_link_is_no_dead_connection(kind, slow_target):
    keepalive = Keepalive(interval_seconds=10.0, timeout_seconds=0.3)
    with connect(kind, slow_target, keepalive=keepalive, retry=Retry(attempts=1)) as client:
        assert client.sample(4096, seed=1).shape == (4096, 1, 28, 28)
