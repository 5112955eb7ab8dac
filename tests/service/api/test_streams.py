"""`in_order`: replies to a stream of requests, in their order, a bounded number at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latentserve.v1 import latent_service_pb2 as pb
from service.api.streams import in_order
from tests.support.waiting import wait_until_async


async def counting(count: int, read: list[int]) -> AsyncIterator[int]:
    for number in range(count):
        read.append(number)
        yield number


@settings(max_examples=50)
@given(delays=st.lists(st.integers(0, 5), max_size=12), window=st.integers(1, 4))
async def test_replies_come_in_the_order_of_requests_and_a_window_of_them_runs(
    delays: list[int], window: int
) -> None:
    running = 0

    async def answer(number: int) -> int:
        nonlocal running
        running += 1
        assert running <= window
        for _ in range(delays[number]):
            await asyncio.sleep(0)
        running -= 1
        return 10 * number

    replies = [reply async for reply in in_order(counting(len(delays), []), answer, window)]
    assert replies == [10 * number for number in range(len(delays))]


async def test_a_reply_does_not_wait_for_the_next_request() -> None:
    more = asyncio.Event()

    async def requests() -> AsyncIterator[int]:
        yield 1
        await more.wait()
        yield 2

    async def answer(number: int) -> int:
        return number

    replies = in_order(requests(), answer, 2)
    assert await asyncio.wait_for(anext(replies), 1) == 1
    more.set()
    assert [reply async for reply in replies] == [2]


async def test_requests_are_not_read_while_replies_are_not_taken() -> None:
    read: list[int] = []

    async def answer(number: int) -> int:
        return number

    async with aclosing(in_order(counting(100, read), answer, 2)) as replies:
        await anext(replies)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(read) <= 3
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("where", ["request", "answer"])
async def test_an_error_ends_the_stream_and_leaves_no_task(where: str) -> None:
    async def requests() -> AsyncIterator[int]:
        yield 1
        yield 2
        if where == "request":
            raise ValueError("broken")
        yield 3

    async def answer(number: int) -> int:
        if where == "answer" and number == 2:
            raise ValueError("broken")
        return number

    with pytest.raises(ValueError, match="broken"):
        _ = [reply async for reply in in_order(requests(), answer, 2)]
    assert len(asyncio.all_tasks()) == 1


class Memory:
    """Counts held bytes."""

    def __init__(self) -> None:
        self.bytes = 0

    def hold(self, count: int) -> None:
        self.bytes += count

    def release(self, count: int) -> None:
        self.bytes -= count
        assert self.bytes >= 0


@pytest.mark.parametrize("ends_by", ["end", "close", "error"])
async def test_replies_that_wait_are_counted_until_they_are_taken(ends_by: str) -> None:
    memory, first = Memory(), asyncio.Event()

    async def answer(number: int) -> tuple[bytes, ...]:
        if number == 0:
            await first.wait()
        if ends_by == "error" and number == 3:
            raise ValueError("broken")
        return bytes(60), bytes(40)

    async with aclosing(in_order(counting(5, []), answer, 2, memory)) as replies:
        reply = asyncio.ensure_future(anext(replies))
        await wait_until_async(lambda: memory.bytes)
        assert memory.bytes == 100
        if ends_by == "close":
            reply.cancel()
            with pytest.raises(asyncio.CancelledError):
                await reply
        else:
            first.set()
            await reply
        if ends_by == "end":
            assert len([reply async for reply in replies]) == 4
        elif ends_by == "error":
            with pytest.raises(ValueError, match="broken"):
                _ = [reply async for reply in replies]
    assert memory.bytes == 0


async def test_a_reply_that_is_a_message_is_counted_by_its_length() -> None:
    memory, message, first = Memory(), pb.SampleResponse(seed=7), asyncio.Event()

    async def answer(number: int) -> pb.SampleResponse:
        if number == 0:
            await first.wait()
        return message

    async with aclosing(in_order(counting(2, []), answer, 2, memory)) as replies:
        reply = asyncio.ensure_future(anext(replies))
        await wait_until_async(lambda: memory.bytes)
        assert memory.bytes == message.ByteSize()
        first.set()
        assert await reply is message
        assert [reply async for reply in replies] == [message]
    assert memory.bytes == 0


async def test_replies_are_given_back_if_the_close_is_cancelled_as_well() -> None:
    memory, left, slow = Memory(), asyncio.Event(), asyncio.Event()

    async def answer(number: int) -> tuple[bytes, ...]:
        if number == 0:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                left.set()
                await slow.wait()
                raise
        return (bytes(100),)

    replies = in_order(counting(5, []), answer, 2, memory)
    taking = asyncio.ensure_future(anext(replies))
    await wait_until_async(lambda: memory.bytes)
    taking.cancel()
    await left.wait()
    taking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await taking
    slow.set()
    await wait_until_async(lambda: memory.bytes == 0)
