"""Requests that are never completed: ended when others need their memory."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from service.dispatch import uploads
from service.engine.call import Call
from tests.support.http2_client import RawClient
from tests.support.http2_peer import message
from tests.support.transports import Handlers, serving

MIB = 2**20
OK, RESOURCE_EXHAUSTED, UNAVAILABLE = 0, 8, 14


async def unary(_request: Any, _call: Call) -> tuple[bytes]:
    return (b"",)


async def stream(requests: Any, _call: Call) -> AsyncIterator[tuple[bytes]]:
    async for _ in requests:
        yield (b"",)


@pytest.mark.parametrize("method", ["Encode", "EncodeStream"])
async def test_stalled_uploads_do_not_shut_others_out(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "STALLED_SECONDS", 0.5)
    handlers = Handlers(encode=unary, encode_stream=stream)
    body = message(b"\x7a" + b"\xa0\x8d\x06" + bytes(100_000))  # an unknown field

    def upload() -> None:
        begun = message(bytes(10 * MIB))[:700_000]
        with RawClient(running.target) as slow, RawClient(running.target) as other:
            moving = slow.open("Encode")
            slow.send(moving, body[:30_000])
            stalled = [slow.open(method) for _ in range(2)]
            for number in stalled:
                slow.send(number, begun)
            slow.read(0.2)
            statuses = []
            for _ in range(12):
                number = other.open("Encode")
                other.send(number, body[:30_000])
                slow.send(moving, bytes(5000))
                slow.read(0.05)
                time.sleep(0.1)
                other.read(0.01)
                statuses.append(other.replies[number].fields.get("grpc-status"))
            assert str(RESOURCE_EXHAUSTED) in statuses
            assert statuses[-1] is None, statuses
            first, second = (slow.replies[number] for number in stalled)
            assert (first.status, first.ended) == (UNAVAILABLE, True)
            assert "did not arrive" in first.text
            assert not second.over, "one was enough"
            assert not slow.replies[moving].over

    async with serving("http2", handlers, max_queue_bytes=MIB) as running:
        await asyncio.to_thread(upload)
