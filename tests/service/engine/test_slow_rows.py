"""The batcher with images of several sizes: slow rows, turns, and the memory of batches."""

import asyncio
import threading
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.call import Call
from service.engine.request import Operation
from service.models.speed import Limits
from tests.service.engine.test_batcher import Bench, Doubling, _settled
from tests.support.waiting import wait_until_async

SMALL, MIDDLE, LARGE, HUGE = (8, 8), (64, 64), (512, 512), (1024, 1024)


def _fast(row_bytes: int = 0, rows: int = 8, row_seconds: float = 1.0) -> Limits:
    return Limits(rows, rows, row_bytes=row_bytes, run_seconds=0, row_seconds=row_seconds)


def _long() -> Limits:
    return Limits(1, 1, row_bytes=10, run_seconds=0, row_seconds=1.0, long=True)


def _slow(row_bytes: int = 0) -> Limits:
    return Limits(1, 1, True, row_bytes=row_bytes, run_seconds=0, row_seconds=1.0)


def _graph(name: str = "graph", **bytes_of: int) -> Doubling:
    graph = Doubling(name)
    graph.sizes = {
        SMALL: _fast(bytes_of.get("small", 0)),
        MIDDLE: _long(),
        LARGE: _slow(bytes_of.get("large", 0)),
        HUGE: _slow(bytes_of.get("huge", 0)),
    }
    return graph


async def test_sizes_never_share_a_batch_and_take_turns() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=2)
    tasks = [bench.submit(graph, [1, 1, 1, 1], size=(8, 8))]
    tasks += [bench.submit(graph, [2, 2, 2], size=(8, 16)), bench.submit(graph, [3], size=(8, 8))]
    await bench.compute_all()
    await asyncio.gather(*tasks)
    assert graph.batches == [[1, 1], [2, 2], [3, 1], [2], [1]]


async def test_a_caller_of_many_sizes_has_no_more_turns_than_one_of_a_single_size() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=2)
    many, one = Call(caller="many"), Call(caller="one")
    tasks = [bench.submit(graph, [side], many, size=(side, side)) for side in range(1, 7)]
    tasks += [bench.submit(graph, [10, 11, 12], one, size=(10, 10))]
    await bench.compute_all()
    await asyncio.gather(*tasks)
    assert graph.batches == [[1], [10, 11], [2], [12], [3], [4], [5], [6]]


async def test_a_batch_takes_requests_of_its_size_from_behind_others() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=4)
    a, b = Call(caller="a"), Call(caller="b")
    tasks = [
        bench.submit(graph, [value], call, size=(value, value))
        for value, call in ((1, a), (2, a), (1, a), (3, b), (1, b), (2, b))
    ]
    await bench.compute_all()
    await asyncio.gather(*tasks)
    assert graph.batches == [[1, 1, 1], [3], [2, 2]]


async def test_requests_of_callers_who_left_hold_up_no_other_size() -> None:
    bench, graph = Bench(threads=2), _graph()
    running = bench.submit(graph, [1], size=LARGE)
    await _settled()
    left = [bench.submit(graph, [2], size=HUGE), bench.submit(graph, [3], size=(9, 9))]
    staying = [bench.submit(graph, [4], size=LARGE), bench.submit(graph, [5], size=SMALL)]
    for task in left:
        task.cancel()
    await bench.compute_all()
    await asyncio.gather(running, *staying)
    assert sorted(graph.batches) == [[1], [4], [5]]


async def test_the_run_of_a_slow_row_ends_when_its_caller_leaves() -> None:
    bench, graph = Bench(threads=3), _graph()
    leaving, staying = (bench.submit(graph, [row], size=LARGE) for row in (1, 2))
    await _settled()
    assert len(bench.running) == 2
    leaving.cancel()
    await bench.compute_all()
    assert await staying == [4]
    assert graph.batches == [[2]]
    assert not [event for event, _ in bench.events if event == "failed"]


async def test_slow_rows_are_computed_one_at_a_time_and_leave_a_thread_to_the_others() -> None:
    bench, graph = Bench(threads=3), _graph()
    photographs = bench.submit(graph, [1, 2, 3], size=LARGE)
    await _settled()
    assert len(bench.running) == 2
    digit = bench.submit(graph, [10, 11], size=SMALL)
    await _settled()
    assert len(bench.running) == 3
    last = bench.running.pop()
    last[0]()
    last[1]()
    assert await digit == [20, 22]
    assert graph.batches == [[10, 11]]
    await bench.compute_all()
    assert await photographs == [2, 4, 6]


async def test_with_one_thread_a_slow_row_has_one_of_its_own() -> None:
    bench, graph = Bench(threads=1), _graph()
    photographs = bench.submit(graph, [1, 2], size=LARGE)
    digits = [bench.submit(graph, [10], size=SMALL)]
    await _settled()
    digits.append(bench.submit(graph, [11], size=SMALL))
    await _settled()
    assert len(bench.running) == 2
    await bench.compute_all()
    await asyncio.gather(photographs, *digits)
    assert sorted(graph.batches) == [[1], [2], [10], [11]]


async def test_a_short_batch_is_computed_on_the_event_loop_beside_a_slow_row() -> None:
    bench, graph = Bench(threads=2), _graph()
    graph.sizes[SMALL] = _fast(row_seconds=1e-5)
    slow = bench.submit(graph, [1, 2], size=LARGE)
    await _settled()
    assert len(bench.running) == 1
    assert await bench.submit(graph, [10], size=SMALL) == [20]
    assert len(bench.running) == 1
    await bench.compute_all()
    assert await slow == [2, 4]


async def test_slow_rows_and_others_take_turns_for_an_idle_thread() -> None:
    bench, graph = Bench(threads=2), _graph()
    graph.sizes[SMALL] = _fast(rows=1)
    digits = [bench.submit(graph, [value], size=SMALL) for value in range(10, 16)]
    await _settled()
    slow = bench.submit(graph, [1, 2], size=LARGE)
    await bench.compute_all()
    await asyncio.gather(slow, *digits)
    assert graph.batches == [[10], [11], [1], [12], [2], [13], [14], [15]]


@pytest.mark.parametrize("threads", [1, 2, 3])
async def test_a_digit_waits_for_none_of_the_long_rows_in_all_threads(threads: int) -> None:
    bench, graph = Bench(threads=threads), _graph()
    middle = bench.submit(graph, list(range(1, 9)), size=MIDDLE)
    await _settled()
    assert len(bench.running) == threads
    digits = [bench.submit(graph, [10], size=SMALL)]
    await _settled()
    assert len(bench.running) == threads + 1
    # A second batch of digits is not started beside it.
    digits.append(bench.submit(graph, [11], size=SMALL))
    await _settled()
    assert len(bench.running) == threads + 1
    last = bench.running.pop()
    last[0]()
    last[1]()
    assert await digits[0] == [20]
    await bench.compute_all()
    assert await middle == list(range(2, 18, 2))
    assert await digits[1] == [22]


async def test_long_rows_pass_a_slow_one_that_waits_and_take_turns_with_it() -> None:
    bench, graph = Bench(threads=2), _graph()
    slow = bench.submit(graph, [1, 2], size=LARGE)
    await _settled()
    middle = bench.submit(graph, [11, 12, 13], size=MIDDLE)
    await _settled()
    assert len(bench.running) == 2
    await bench.compute_all()
    assert await slow == [2, 4]
    assert await middle == [22, 24, 26]
    assert graph.batches == [[1], [11], [2], [12], [13]]


async def test_callers_of_slow_rows_take_turns_whatever_their_sizes() -> None:
    bench, graph = Bench(threads=2), _graph()
    one, two = Call(caller="one"), Call(caller="two")
    tasks = [
        bench.submit(graph, [1, 2, 3], one, size=LARGE),
        bench.submit(graph, [11, 12], two, size=LARGE),
        bench.submit(graph, [21, 22], one, size=HUGE),
    ]
    await bench.compute_all()
    await asyncio.gather(*tasks)
    assert graph.batches == [[1], [11], [21], [12], [2], [22], [3]]


async def test_a_slow_row_waits_for_memory_and_no_other_slow_row_overtakes_it() -> None:
    bench, graph = Bench(threads=8, max_bytes=100), _graph(small=10, large=40, huge=90)
    tasks = [bench.submit(graph, [1], size=LARGE)]
    await _settled()
    tasks += [bench.submit(graph, [2], size=HUGE), bench.submit(graph, [3], size=LARGE)]
    await _settled()
    assert len(bench.running) == 1
    # Others take fewer rows than they might.
    tasks.append(bench.submit(graph, list(range(10, 18)), size=SMALL))
    await _settled()
    await bench.compute(1)
    await bench.compute_all()
    await asyncio.gather(*tasks)
    slow = [batch for batch in graph.batches if batch[0] < 10]
    assert slow == [[1], [2], [3]]
    small = [len(batch) for batch in graph.batches if batch[0] >= 10]
    assert max(small) <= 6
    assert bench.batcher._running.bytes == 0


async def test_the_memory_of_slow_rows_is_released_some_seconds_after_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engine.running._RELEASE_SECONDS", 0.01)
    bench, graph = Bench(threads=2), _graph()
    tasks = [bench.submit(graph, [1, 2], size=LARGE)]
    await bench.compute(1)
    bench.now = 1.0
    await asyncio.sleep(0.03)
    assert len(bench.running) == 1  # not while slow rows run
    await bench.compute_all()
    bench.now = 2.0
    await wait_until_async(lambda: bench.running)
    assert graph.released == 0
    await bench.compute_all()
    assert graph.released == 1
    await asyncio.gather(*tasks)
    await asyncio.sleep(0.03)
    assert not bench.running


async def test_the_memory_of_a_graph_is_released_while_another_computes_slow_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.engine.running._RELEASE_SECONDS", 0.01)
    bench, busy, idle = Bench(threads=3), _graph("busy"), _graph("idle")
    tasks = [bench.submit(idle, [1], size=LARGE), bench.submit(busy, [2], size=LARGE)]
    await bench.compute(1)
    bench.now = 1.0
    await wait_until_async(lambda: len(bench.running) == 2)
    await bench.compute_all()
    assert (idle.released, busy.released) == (1, 0)
    await asyncio.gather(*tasks)


async def test_a_call_of_a_slow_row_does_not_wait_until_it_has_been_observed() -> None:
    bench, graph, seen = Bench(threads=2), _graph(), []
    leave = threading.Event()

    def observe(inputs: Any, outputs: Any) -> None:
        leave.wait(10)
        seen.append((inputs["x"].tolist(), outputs["y"].tolist()))
        raise ValueError("not observed")

    graph.operation = Operation(graph, ("y",), observe=observe)
    slow = bench.submit(graph, [1], size=LARGE)
    behind = bench.submit(graph, [2], size=LARGE)
    await _settled()
    ((work, then),) = bench.running
    thread = threading.Thread(target=work)
    thread.start()
    assert await slow == [2]
    # Its thread is still occupied, so no other slow row starts.
    await _settled()
    assert not seen
    assert len(bench.running) == 1
    assert not behind.done()
    leave.set()
    thread.join(10)
    bench.running.clear()
    then()
    assert seen == [([[1]], [[2]])]
    assert ("failed", ("graph", "not observed")) in bench.events
    await bench.compute_all()
    assert await behind == [4]


@pytest.mark.parametrize("error", [None, ValueError("not observed")])
async def test_other_batches_are_observed_before_their_calls_are_answered(error: Any) -> None:
    bench, graph, seen = Bench(), _graph(), []

    def observe(inputs: Any, outputs: Any) -> None:
        seen.append((inputs["x"].tolist(), outputs["y"].tolist()))
        if error is not None:
            raise error

    graph.operation = Operation(graph, ("y",), observe=observe)
    digits = bench.submit(graph, [1, 2], size=SMALL)
    await bench.compute_all()
    assert seen == [([[1], [2]], [[2], [4]])]
    if error is None:
        assert await digits == [2, 4]
    else:
        with pytest.raises(ValueError, match="not observed"):
            await digits


async def test_a_row_that_is_not_slow_never_waits_for_memory() -> None:
    bench, graph = Bench(threads=2, max_bytes=100), _graph(small=10, huge=100)
    slow = bench.submit(graph, [1], size=HUGE)
    await _settled()
    digits = bench.submit(graph, [10, 11], size=SMALL)
    await _settled()
    assert len(bench.running) == 2
    await bench.compute_all()
    await asyncio.gather(slow, digits)
    assert graph.batches == [[1], [10], [11]]


@settings(max_examples=60)
@given(
    requests=st.lists(
        st.tuples(st.sampled_from([SMALL, MIDDLE, LARGE, HUGE]), st.integers(1, 9)),
        min_size=1,
        max_size=12,
    ),
    threads=st.integers(1, 4),
    order=st.randoms(use_true_random=False),
)
async def test_every_row_is_computed_with_one_thread_free_of_slow_rows(
    requests: list[tuple[tuple[int, int], int]], threads: int, order: object
) -> None:
    bench, graph = Bench(threads, max_bytes=200), _graph(small=10, large=60, huge=150)
    tasks, value = [], 0
    for size, rows in requests:
        values = [float(number) for number in range(value, value + rows)]
        value += rows
        tasks.append((bench.submit(graph, values, size=size), values))
        if order.random() < 0.5:  # type: ignore[attr-defined]
            await _settled()
    await _settled()
    while bench.running:
        running = bench.batcher._running
        assert running.slow <= max(1, threads - 1)
        assert running.long <= threads
        assert running.fast <= threads
        count = running.slow + running.long + running.fast
        assert count == len(bench.running) <= max(2, threads) + (running.long > 0)
        # A row in each thread, or else one slow row, may exceed the limit.
        assert running.bytes <= 200 + max(10 * (threads + 1), 150)
        index = order.randrange(len(bench.running))  # type: ignore[attr-defined]
        bench.running.insert(0, bench.running.pop(index))
        await bench.compute()
    for task, values in tasks:
        assert await task == [2 * value for value in values]
