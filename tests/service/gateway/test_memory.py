"""What the gateway counts of bodies that arrive and of replies that wait to be read."""

import asyncio
from types import SimpleNamespace

import pytest

from service.dispatch import unread
from service.engine.admission import Admission
from service.errors import Overloaded, TooLarge
from service.gateway.receiving import Receiving
from service.gateway.sending import Sending

PART = 2**16


class Endless:
    """A chunked request whose body does not end."""

    method = "POST"

    def __init__(self):
        self.headers = {}

    async def receive(self):
        return {"type": "http.request", "body": b"x" * PART, "more_body": True}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(unread, "STALLED_SECONDS", 0.2)
    monkeypatch.setattr(unread, "_CHECK_SECONDS", 0.05)


@pytest.fixture
async def sending():
    made = Sending(Admission(1000, 1000))
    yield made
    made.close()


async def lack(sending, *moving):
    """Other calls lack memory for a while, in which some replies are being read."""
    for _ in range(4):
        for pieces in moving:
            pieces.moved_at = asyncio.get_running_loop().time()
        sending.has_room(500)
        await asyncio.sleep(0.1)


@pytest.mark.usefixtures("quick")
async def test_a_stream_of_which_nothing_waits_is_not_dropped_for_the_memory_of_others(sending):
    dropped = []
    sending.pieces(lambda: dropped.append("idle"))
    read = sending.pieces(lambda: dropped.append("read"))
    read._hold(900)
    await asyncio.sleep(0.3)
    await lack(sending, read)
    assert dropped == []


@pytest.mark.usefixtures("quick")
async def test_a_reply_stalls_from_when_it_begins_to_wait(sending):
    dropped = []
    late = sending.pieces(lambda: dropped.append("late"))
    await asyncio.sleep(0.3)
    late._hold(900)
    sending.has_room(500)
    await asyncio.sleep(0.1)
    assert dropped == []
    await lack(sending)
    assert "late" in dropped


@pytest.mark.parametrize(("largest", "most", "error"), [
    (100_000, 10**6, TooLarge), (10**6, -1, Overloaded),
])  # fmt: skip
async def test_a_refused_body_is_not_counted_any_more(largest, most, error):
    dispatcher = SimpleNamespace(precheck=lambda *_: None)
    receiving = Receiving(dispatcher, largest, most)
    for _ in range(3):
        with pytest.raises(error):
            await receiving.whole(Endless(), None, None)
    receiving.close()
    assert receiving._uploads._held == 0
