"""Blocking work in threads: turns, cancellation, errors."""

import asyncio
import contextvars
import threading
from collections.abc import AsyncIterator

import pytest

from service.engine.background import Background

NAME: contextvars.ContextVar[str] = contextvars.ContextVar("NAME", default="")


@pytest.fixture
async def one() -> AsyncIterator[Background]:
    """A single thread."""
    background = Background(1)
    yield background
    background.close()


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_callers_take_turns(one: Background) -> None:
    done: list[str] = []
    gate = threading.Event()
    first = asyncio.create_task(one.run(gate.wait, "a"))
    await settled()
    names = ("a1", "a2", "a3", "b1", "c1", "b2")
    tasks = [
        asyncio.create_task(one.run(lambda name=name: done.append(name), name[0]))  # type: ignore[misc]
        for name in names
    ]
    await settled()
    gate.set()
    await asyncio.gather(first, *tasks)
    assert done == ["a1", "b1", "c1", "a2", "b2", "a3"]


async def test_a_thread_is_busy_until_the_work_of_a_cancelled_call_is_done(one: Background) -> None:
    gate = threading.Event()
    leaving = asyncio.create_task(one.run(gate.wait, "a"))
    waiting = asyncio.create_task(one.run(lambda: "never", "b"))
    staying = asyncio.create_task(one.run(lambda: "done", "b"))
    await settled()
    leaving.cancel()
    waiting.cancel()
    await settled()
    assert leaving.cancelled()
    assert waiting.cancelled()
    assert not staying.done()
    gate.set()
    assert await staying == "done"
    assert await one.run(lambda: 7, "a") == 7


async def test_a_call_cancelled_as_its_turn_comes_passes_it_on(
    one: Background, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate, ran, finished = threading.Event(), list[str](), one._finished

    def finish_and_cancel(running: "asyncio.Future[object]") -> None:
        finished(running)
        leaving.cancel()  # it has the turn now, and has not run since

    monkeypatch.setattr(one, "_finished", finish_and_cancel)
    first = asyncio.create_task(one.run(gate.wait, "a"))
    leaving = asyncio.create_task(one.run(lambda: ran.append("leaving"), "b"))
    staying = asyncio.create_task(one.run(lambda: ran.append("staying"), "c"))
    await settled()
    gate.set()
    await staying
    assert await first
    assert leaving.cancelled()
    assert ran == ["staying"]
    assert await one.run(lambda: 7, "a") == 7


async def test_work_has_its_calls_context_and_its_errors_reach_the_call(one: Background) -> None:
    NAME.set("here")
    assert await one.run(NAME.get, "") == "here"
    with pytest.raises(ZeroDivisionError):
        await one.run(lambda: 1 / 0, "")
    assert await one.run(lambda: 7, "") == 7
