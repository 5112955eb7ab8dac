"""A stream of questions: answered in order, a bounded number at a time."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.api.streams import in_order


async def counting(count: int, read: list[int]) -> AsyncIterator[int]:
    for number in range(count):
        read.append(number)
        yield number


@settings(max_examples=50)
@given(delays=st.lists(st.integers(0, 5), max_size=12), window=st.integers(1, 4))
async def test_answers_come_in_the_order_of_the_questions(delays: list[int], window: int) -> None:
    running = 0

    async def answer(number: int) -> int:
        nonlocal running
        running += 1
        assert running <= window
        for _ in range(delays[number]):
            await asyncio.sleep(0)
        running -= 1
        return 10 * number

    answers = [each async for each in in_order(counting(len(delays), []), answer, window)]
    assert answers == [10 * number for number in range(len(delays))]


async def test_an_answer_does_not_wait_for_the_next_question() -> None:
    more = asyncio.Event()

    async def questions() -> AsyncIterator[int]:
        yield 1
        await more.wait()
        yield 2

    async def answer(number: int) -> int:
        return number

    answers = in_order(questions(), answer, 2)
    assert await asyncio.wait_for(anext(answers), 1) == 1
    more.set()
    assert [each async for each in answers] == [2]


async def test_who_does_not_read_is_not_read_from() -> None:
    read: list[int] = []

    async def answer(number: int) -> int:
        return number

    async with aclosing(in_order(counting(100, read), answer, 2)) as answers:
        await anext(answers)
        for _ in range(50):
            await asyncio.sleep(0)
        assert len(read) <= 3
    assert len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("where", ["question", "answer"])
async def test_what_goes_wrong_ends_it_and_leaves_nothing_running(where: str) -> None:
    async def questions() -> AsyncIterator[int]:
        yield 1
        yield 2
        if where == "question":
            raise ValueError("broken")
        yield 3

    async def answer(number: int) -> int:
        if where == "answer" and number == 2:
            raise ValueError("broken")
        return number

    with pytest.raises(ValueError, match="broken"):
        _ = [each async for each in in_order(questions(), answer, 2)]
    assert len(asyncio.all_tasks()) == 1
