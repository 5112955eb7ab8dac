"""The batcher alone, with a clock and a thread pool that the tests step by hand."""

import asyncio
import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batcher import (
    INLINE_SECONDS,
    INLINE_SECONDS_ONE_CALL,
    INLINE_SECONDS_ONE_CORE,
    Batcher,
)
from service.engine.call import Call
from service.engine.entry import QueueEntry
from service.engine.pool import Pool
from service.engine.request import InferenceRequest, Operation
from service.errors import DeadlineExceeded
from service.models.speed import Limits
from tests.support.waiting import wait_until_async


class Doubling:
    """A graph that doubles its rows, and records the batches it was given."""

    def __init__(
        self,
        name: str = "doubling",
        max_batch_rows: int = 8,
        row_seconds: float = 1.0,
        max_call_rows: int | None = None,
    ) -> None:
        self.name = name
        call_rows = max_batch_rows if max_call_rows is None else max_call_rows
        self._limits = Limits(max_batch_rows, call_rows, run_seconds=0, row_seconds=row_seconds)
        self.sizes: dict[Any, Limits] = {}
        self.released = 0
        self.batches: list[list[float]] = []
        self.error: Exception | None = None
        self.operation = Operation(self, ("y",))

    def limits(self, size: Any) -> Limits:
        return self.sizes.get(size, self._limits)

    def release_memory(self) -> None:
        self.released += 1

    def run_options(self) -> Any:
        return SimpleNamespace(terminate=False)

    def run(self, inputs: Any, outputs: Any, _size: Any, options: Any) -> Any:
        if options is not None and options.terminate:
            raise RuntimeError("terminated")
        if self.error is not None:
            raise self.error
        self.batches.append(inputs["x"][:, 0].tolist())
        return dict.fromkeys(outputs, 2 * inputs["x"])


class Bench:
    """A batcher, its observer, and the batches that its threads have not computed yet."""

    def __init__(self, threads: int = 1, **options: float):
        self.now = 0.0
        self.events: list[tuple[str, Any]] = []
        self.running: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self.batcher = Batcher(
            lambda work, then: self.running.append((work, then)),
            threads,
            self,
            clock=lambda: self.now,
            **options,
        )

    def batch_computed(self, graph: Any, rows: int, seconds: float) -> None:
        self.events.append(("computed", (graph.name, rows, seconds)))

    def batch_failed(self, graph: Any, error: Exception) -> None:
        self.events.append(("failed", (graph.name, str(error))))

    def requests_dequeued(self, seconds: Sequence[float]) -> None:
        self.events.extend(("dequeued", one) for one in seconds)

    def request_dropped(self, reason: str) -> None:
        self.events.append(("dropped", reason))

    def submit(
        self, graph: Doubling, values: list[float], call: Call | None = None, **changes: Any
    ) -> asyncio.Future[Any]:
        x = np.array(values, np.float32)[:, None]
        fields: dict[str, Any] = {
            "inputs": {"x": x},
            "finish": lambda outputs: outputs["y"][:, 0].tolist(),
        }
        request: InferenceRequest[Any] = InferenceRequest(
            graph.operation, len(values), **(fields | changes)
        )
        return self.batcher.run(request, call or Call())

    async def compute(self, batches: int = 1) -> None:
        """Completes the oldest of the running batches, one after the other."""
        for _ in range(batches):
            await _settled()
            work, then = self.running.pop(0)
            work()
            then()
            await _settled()

    async def compute_all(self) -> None:
        await _settled()
        while self.running:
            await self.compute()


async def _settled() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


async def test_a_lone_call_is_dispatched_at_once() -> None:
    bench, graph, call = Bench(), Doubling(), Call()
    task = bench.submit(graph, [1, 2], call)
    await _settled()
    assert len(bench.running) == 1
    await bench.compute()
    assert await task == [2, 4]
    assert call.timing.batch_rows == 2


async def test_requests_of_one_loop_iteration_share_a_batch() -> None:
    bench, graph = Bench(), Doubling()
    tasks = [bench.submit(graph, [value]) for value in (1, 2, 3, 4)]
    await bench.compute_all()
    assert graph.batches == [[1, 2, 3, 4]]
    assert [await task for task in tasks] == [[2], [4], [6], [8]]


async def test_queued_requests_share_a_batch_once_a_thread_is_idle() -> None:
    bench, graph = Bench(), Doubling()
    calls = [Call() for _ in range(4)]
    tasks = [bench.submit(graph, [0], calls[0])]
    await _settled()
    for value in (1, 2, 3):
        tasks.append(bench.submit(graph, [value], calls[value]))
        await _settled()
    await bench.compute_all()
    assert graph.batches == [[0], [1, 2, 3]]
    assert [await task for task in tasks] == [[0], [2], [4], [6]]
    assert [call.timing.batch_rows for call in calls] == [1, 3, 3, 3]


async def test_a_large_call_is_split_and_delays_a_small_one_by_the_running_batch_and_one_more() -> (
    None
):
    bench, graph = Bench(), Doubling(max_batch_rows=4)
    large = bench.submit(graph, list(range(14)))
    await _settled()
    small = bench.submit(graph, [100])
    await bench.compute(3)
    assert small.done()
    assert not large.done()
    await bench.compute_all()
    assert await large == [2 * value for value in range(14)]
    assert graph.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 8, 9, 10], [11, 12, 13]]


async def test_a_label_stays_with_its_row_wherever_the_row_is_computed() -> None:
    class Adding(Doubling):
        """Adds the label of each row to it."""

        def run(self, inputs: Any, outputs: Any, _size: Any, options: Any) -> Any:
            super().run(inputs, outputs, _size, options)
            return {"y": inputs["x"] + inputs["label"][:, None]}

    bench, graph = Bench(threads=2), Adding(max_batch_rows=4, max_call_rows=3)
    tasks, wanted = [], []
    for rows in (7, 1, 2, 5, 1):
        x = np.arange(rows, dtype=np.float32)[:, None]
        label = 100 * np.arange(rows, dtype=np.int64) + 1000 * len(tasks)
        tasks.append(bench.submit(graph, [0] * rows, inputs={"x": x, "label": label}))
        wanted.append((x[:, 0] + label).tolist())
    await bench.compute_all()
    assert [await task for task in tasks] == wanted
    assert max(map(len, graph.batches)) == 4


async def test_a_batch_of_many_calls_may_exceed_the_rows_of_one_call() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=8, max_call_rows=3)
    tasks = [bench.submit(graph, rows) for rows in ([1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11])]
    await bench.compute_all()
    assert [await task for task in tasks] == [
        [2, 4, 6, 8],
        [10],
        [12, 14, 16, 18, 20, 22],
    ]
    assert graph.batches == [[1, 2, 3, 5, 6, 7, 8], [4, 9, 10, 11]]
    large = bench.submit(graph, list(range(7)))
    await bench.compute_all()
    await large
    assert graph.batches[2:] == [[0, 1, 2], [3, 4, 5], [6]]


async def test_idle_threads_share_the_queued_rows_evenly() -> None:
    bench, graph = Bench(threads=2), Doubling(max_batch_rows=16, max_call_rows=2)
    tasks = [bench.submit(graph, [value]) for value in range(9)]
    await _settled()
    assert len(bench.running) == 2
    await bench.compute_all()
    await asyncio.gather(*tasks)
    assert graph.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]


async def test_a_split_call_is_computed_by_all_threads_in_any_order() -> None:
    bench, graph, call = Bench(threads=3), Doubling(max_batch_rows=4), Call()
    task = bench.submit(graph, list(range(10)), call)
    await _settled()
    assert len(bench.running) == 3
    bench.running.reverse()
    await bench.compute_all()
    assert await task == [2 * value for value in range(10)]
    assert call.timing.batch_rows == 4


async def test_inputs_may_be_made_batch_by_batch_in_the_compute_thread() -> None:
    made: list[tuple[int, int]] = []

    def make(start: int, stop: int) -> dict[str, Any]:
        made.append((start, stop))
        return {"x": np.arange(start, stop, dtype=np.float32)[:, None]}

    bench, graph = Bench(), Doubling(max_batch_rows=4)
    task = bench.submit(graph, [0.0] * 10, inputs=make)
    await _settled()
    assert made == []
    await bench.compute_all()
    assert await task == [2 * value for value in range(10)]
    assert made == [(0, 4), (4, 8), (8, 10)]


async def test_before_and_after_of_an_operation_run_once_for_a_batch() -> None:
    seen: list[int] = []

    def halved(inputs: Any) -> Any:
        seen.append(len(inputs["x"]))
        return {"x": inputs["x"] / 2}

    bench, graph = Bench(), Doubling()
    graph.operation = Operation(
        graph, ("y",), halved, lambda inputs, outputs: {"y": outputs["y"] + inputs["x"]}
    )
    tasks = [bench.submit(graph, [2]), bench.submit(graph, [4, 6])]
    await bench.compute_all()
    assert [await task for task in tasks] == [[3], [6, 9]]
    assert seen == [3]


async def test_a_short_batch_is_computed_on_the_event_loop_and_a_long_one_is_not() -> None:
    bench, graph = Bench(), Doubling(row_seconds=INLINE_SECONDS / 2)
    tasks = [bench.submit(graph, [1]), bench.submit(graph, [2])]
    await _settled()
    assert [await task for task in tasks] == [[2], [4]]
    assert not bench.running
    tasks = [bench.submit(graph, [1, 2]), bench.submit(graph, [3])]
    await _settled()
    assert len(bench.running) == 1
    # Nor is a short one while another batch is running.
    late = bench.submit(graph, [4])
    await _settled()
    assert not late.done()
    await bench.compute_all()
    assert [await task for task in (*tasks, late)] == [[2, 4], [6], [8]]


async def test_the_only_call_in_flight_may_compute_longer_on_the_event_loop() -> None:
    bench, graph = Bench(), Doubling(row_seconds=INLINE_SECONDS_ONE_CALL / 2)
    assert INLINE_SECONDS_ONE_CALL > INLINE_SECONDS
    assert await bench.submit(graph, [1, 2]) == [2, 4]
    task = bench.submit(graph, [1, 2, 3])
    await _settled()
    assert len(bench.running) == 1
    # On the event loop this one would delay the reply to the other.
    late = bench.submit(graph, [4])
    await _settled()
    assert not late.done()
    await bench.compute_all()
    assert (await task, await late) == ([2, 4, 6], [8])


async def test_on_one_core_longer_batches_are_computed_on_the_event_loop() -> None:
    bench = Bench(inline=INLINE_SECONDS_ONE_CORE)
    graph = Doubling(row_seconds=INLINE_SECONDS_ONE_CORE / 2)
    assert await bench.submit(graph, [1, 2]) == [2, 4]
    task = bench.submit(graph, [1, 2, 3])
    await _settled()
    assert len(bench.running) == 1
    await bench.compute_all()
    assert await task == [2, 4, 6]


async def test_a_batching_window_ends_with_its_time_or_a_full_batch() -> None:
    bench, graph = Bench(window=0.02), Doubling(max_batch_rows=3)
    first = bench.submit(graph, [1])
    await _settled()
    assert not bench.running
    bench.submit(graph, [2])
    bench.submit(graph, [3])
    await _settled()
    assert len(bench.running) == 1  # full
    await bench.compute_all()
    assert await first == [2]
    alone = bench.submit(graph, [4])
    await _settled()
    assert not bench.running
    bench.now += 0.03
    await wait_until_async(lambda: bench.running)  # a timer of the event loop ends the window
    await bench.compute_all()
    assert await alone == [8]
    assert graph.batches == [[1, 2, 3], [4]]


async def test_operations_take_turns() -> None:
    bench = Bench()
    first, second = Doubling("first", 1), Doubling("second", 1)
    tasks = [bench.submit(first, [1, 2, 3]), bench.submit(second, [1, 2, 3])]
    await bench.compute_all()
    await asyncio.gather(*tasks)
    ran = [details[0] for event, details in bench.events if event == "computed"]
    assert ran == ["first", "second"] * 3


async def test_callers_take_turns_in_and_between_batches() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=4, max_call_rows=2)
    loud, quiet, third = (Call(caller=name) for name in ("loud", "quiet", "third"))
    running = bench.submit(graph, [0], loud)
    await _settled()
    many = [bench.submit(graph, [value, value], loud) for value in (1, 2, 3, 4, 5)]
    await _settled()
    few = [bench.submit(graph, [value], call) for value, call in ((6, quiet), (7, third))]
    await _settled()
    await bench.compute_all()
    await asyncio.gather(running, *many, *few)
    assert graph.batches == [[0], [1, 1, 6, 7], [2, 2, 3, 3], [4, 4, 5, 5]]


async def test_one_large_call_and_many_of_another_caller_share_the_batches() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=4, max_call_rows=2)
    one, many = Call(caller="one"), Call(caller="many")
    running = bench.submit(graph, [0], many)
    await _settled()
    small = [bench.submit(graph, [value], many) for value in range(1, 7)]
    large = bench.submit(graph, [10, 11, 12, 13, 14, 15, 16], one)
    await bench.compute_all()
    await asyncio.gather(running, large, *small)
    assert graph.batches == [[0], [1, 10, 11, 2], [3, 12, 13, 4], [5, 14, 15, 6], [16]]


async def test_rows_whose_deadline_passes_in_the_queue_are_not_computed() -> None:
    bench, graph = Bench(), Doubling()
    bench.submit(graph, [1])
    await _settled()
    late = bench.submit(graph, [2], Call(deadline=5.0))
    in_time = bench.submit(graph, [3], Call(deadline=6.0))
    await _settled()
    bench.now = 5.0
    await bench.compute_all()
    with pytest.raises(DeadlineExceeded, match="1 of 1 rows not computed"):
        await late
    assert await in_time == [6]
    assert graph.batches == [[1], [3]]
    assert ("dropped", "deadline") in bench.events


@pytest.mark.parametrize(
    ("cancelled_at", "reason"), [(5.0, "deadline"), (4.995, "deadline"), (4.9, "cancelled")]
)
async def test_what_was_cancelled_at_its_deadline_counts_as_late(cancelled_at, reason) -> None:
    """The transport's timer cancels calls at their deadline, mostly before their turn comes."""
    bench, graph = Bench(), Doubling()
    bench.submit(graph, [1])
    await _settled()
    late = bench.submit(graph, [2], Call(deadline=5.0))
    await _settled()
    bench.now = cancelled_at
    late.cancel()
    await _settled()
    bench.now = 6.0
    await bench.compute_all()
    assert [reason for event, reason in bench.events if event == "dropped"] == [reason]
    assert graph.batches == [[1]]


async def test_the_rows_of_a_caller_who_left_are_dropped_and_the_others_computed() -> None:
    bench, graph = Bench(), Doubling()
    bench.submit(graph, [1])
    await _settled()
    leaving = bench.submit(graph, [2])
    staying = bench.submit(graph, [3])
    await _settled()
    leaving.cancel()
    await bench.compute_all()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    assert await staying == [6]
    assert graph.batches == [[1], [3]]
    assert ("dropped", "cancelled") in bench.events


async def test_a_caller_who_leaves_while_its_batch_runs_affects_no_other() -> None:
    bench, graph = Bench(), Doubling()
    leaving = bench.submit(graph, [1, 2, 3])
    await _settled()
    staying = bench.submit(graph, [4])
    await _settled()
    leaving.cancel()
    await bench.compute_all()
    assert await staying == [8]
    again = bench.submit(graph, [5])
    await bench.compute_all()
    assert await again == [10]


async def test_the_rest_of_a_large_call_is_dropped_once_its_caller_has_left() -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=2)
    task = bench.submit(graph, list(range(100)))
    await bench.compute(2)
    task.cancel()
    await bench.compute_all()
    assert len(graph.batches) <= 3


async def test_what_waits_keeps_no_inputs_once_its_caller_has_left() -> None:
    """Admission no longer counts their bytes, and the batch that runs may take seconds."""
    bench, graph = Bench(), Doubling()
    bench.submit(graph, [1])
    await _settled()
    rows = np.zeros((1, 1), np.float32)
    kept = weakref.ref(rows)
    inputs, finish = {"x": rows}, partial(lambda _rows, outputs: outputs, rows)
    leaving = bench.submit(graph, [2], inputs=inputs, finish=finish)
    del rows, inputs, finish
    await _settled()
    assert kept() is not None
    leaving.cancel()
    await _settled()
    assert kept() is None
    assert len(bench.running) == 1
    await bench.compute_all()
    assert graph.batches == [[1]]


@pytest.mark.parametrize("how", ["cancelled", "failed"])
async def test_the_rest_of_what_has_ended_keeps_inputs_only_while_a_batch_reads_them(how) -> None:
    bench, graph = Bench(), Doubling(max_batch_rows=1)
    rows = np.zeros((3, 1), np.float32)
    kept = weakref.ref(rows)

    def read(rows: Any, start: int, stop: int) -> Any:
        if how == "failed":
            raise ValueError("broken")
        return {"x": rows[start:stop]}

    ending = bench.submit(graph, [0, 0, 0], inputs=partial(read, rows))
    del rows
    bench.submit(graph, [1])
    await _settled()
    if how == "cancelled":
        ending.cancel()
    await _settled()
    assert kept() is not None
    await bench.compute()
    assert ending.cancelled() if how == "cancelled" else ending.exception()
    del ending
    assert kept() is None  # though its rest waits, behind the other one
    assert len(bench.running) == 1
    await bench.compute_all()
    assert graph.batches[-1] == [1]


async def test_an_error_in_the_rows_of_one_caller_does_not_affect_the_others() -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    bench, graph = Bench(), Doubling()
    bad = [bench.submit(graph, [1], inputs=broken), bench.submit(graph, [1], finish=broken)]
    good = bench.submit(graph, [2])
    await bench.compute_all()
    for task in bad:
        with pytest.raises(ValueError, match="broken"):
            await task
    assert await good == [4]


async def test_a_large_call_whose_inputs_fail_fails_once_and_its_rest_is_dropped() -> None:
    def broken(start: int, stop: int) -> Any:
        if start == 2:
            raise ValueError("broken")
        return {"x": np.zeros((stop - start, 1), np.float32)}

    bench, graph = Bench(), Doubling(max_batch_rows=2)
    task = bench.submit(graph, [0.0] * 20, inputs=broken)
    await bench.compute_all()
    with pytest.raises(ValueError, match="broken"):
        await task
    assert len(graph.batches) <= 2


async def test_a_graph_error_fails_its_batch_and_not_the_next_one() -> None:
    bench, graph = Bench(), Doubling()
    graph.error = RuntimeError("out of memory")
    tasks = [bench.submit(graph, [1])]
    await bench.compute_all()
    with pytest.raises(RuntimeError, match="out of memory"):
        await tasks[0]
    assert ("failed", ("doubling", "out of memory")) in bench.events
    graph.error = None
    after = bench.submit(graph, [2])
    await bench.compute_all()
    assert await after == [4]


async def test_want_of_memory_fails_a_batch_and_is_no_failure_of_the_device() -> None:
    bench, graph = Bench(), Doubling()
    graph.error = MemoryError("8 GiB")
    task = bench.submit(graph, [1])
    await bench.compute_all()
    with pytest.raises(MemoryError):
        await task
    assert not [event for event, _ in bench.events if event == "failed"]


async def test_queue_and_compute_times_are_measured_on_the_clock() -> None:
    bench, graph, call = Bench(), Doubling(), Call()
    bench.submit(graph, [1])
    await _settled()
    bench.submit(graph, [2], call)
    await _settled()
    bench.now = 3.0
    await bench.compute()
    await _settled()
    bench.now = 7.0
    await bench.compute_all()
    timing = call.timing
    assert (timing.queue, timing.compute, timing.batch_rows) == (3.0, 4.0, 1)


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    max_batch_rows=st.integers(1, 16),
    max_call_rows=st.integers(1, 16),
    threads=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
async def test_each_request_gets_its_own_rows_however_they_are_batched(
    sizes: list[int], max_batch_rows: int, max_call_rows: int, threads: int, order: Any
) -> None:
    bench = Bench(threads)
    call_rows = min(max_call_rows, max_batch_rows)
    graphs = [Doubling(name, max_batch_rows, max_call_rows=call_rows) for name in "ab"]
    wanted, tasks, value = [], [], 0
    for size in sizes:
        rows = [float(row) for row in range(value, value + size)]
        value += size
        wanted.append([2 * row for row in rows])
        tasks.append(bench.submit(order.choice(graphs), rows))
        if order.random() < 0.5:
            await _settled()
    await _settled()
    while bench.running:
        # Threads finish in any order.
        bench.running.insert(0, bench.running.pop(order.randrange(len(bench.running))))
        await bench.compute()
    assert [await task for task in tasks] == wanted
    ran = [row for graph in graphs for batch in graph.batches for row in batch]
    assert sorted(ran) == list(range(value))
    assert max(len(batch) for graph in graphs for batch in graph.batches) <= max_batch_rows


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 12), min_size=2, max_size=12),
    max_batch_rows=st.integers(1, 8),
    threads=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
async def test_callers_who_leave_at_any_time_affect_no_other(
    sizes: list[int], max_batch_rows: int, threads: int, order: Any
) -> None:
    bench, graph = Bench(threads), Doubling(max_batch_rows=max_batch_rows, max_call_rows=2)
    tasks = [bench.submit(graph, [float(index)] * rows) for index, rows in enumerate(sizes)]

    async def leave() -> None:
        if order.random() < 0.3:
            order.choice(tasks).cancel()
            await _settled()

    await leave()
    await _settled()
    while bench.running:
        work, then = bench.running.pop(order.randrange(len(bench.running)))
        await leave()
        work()
        await leave()
        then()
        await _settled()
    assert not [event for event in bench.events if event[0] == "failed"]
    for index, (task, rows) in enumerate(zip(tasks, sizes, strict=True)):
        assert task.cancelled() or await task == [2.0 * index] * rows


async def test_a_pool_computes_off_the_event_loop_and_closes_after_its_work() -> None:
    done: list[str] = []

    pool, graph = Pool(2), Doubling(max_batch_rows=4)
    assert len(pool) == 2
    bench = Bench()
    bench.batcher = Batcher(pool, len(pool), bench)
    values = [float(value) for value in range(50)]
    tasks = [bench.submit(graph, values) for _ in range(8)]
    assert await asyncio.gather(*tasks) == [[2 * value for value in values]] * 8
    pool(lambda: done.append("work"), lambda: done.append("then"))
    pool.close()
    assert done == ["work"]
    await asyncio.sleep(0)
    assert done == ["work", "then"]


def test_a_call_has_no_deadline_by_default() -> None:
    assert Call().deadline == math.inf


async def test_an_entry_ends_as_soon_as_its_batch_has_been_computed_and_only_once() -> None:
    bench, graph = Bench(), Doubling()
    ends: list[Any] = []
    entry = bench.batcher.submit(_rows(graph, [1]), Call(), lambda one: ends.append(one.outcome()))
    await _settled()
    (running,) = bench.running
    running[0]()
    assert ends == []
    running[1]()
    assert ends == [[2]]
    assert not entry.cancel()
    assert ends == [[2]]


async def test_cancelling_an_entry_ends_it_at_once_and_drops_its_rows() -> None:
    bench, graph = Bench(), Doubling()
    ended: list[QueueEntry] = []
    bench.submit(graph, [1])
    await _settled()
    entry = bench.batcher.submit(_rows(graph, [2]), Call(), ended.append)
    assert entry.cancel("why")
    assert ended == [entry]
    with pytest.raises(asyncio.CancelledError, match="why"):
        entry.outcome()
    await bench.compute_all()
    assert graph.batches == [[1]]
    assert ("dropped", "cancelled") in bench.events
    assert ended == [entry]


async def test_a_callback_that_fails_affects_no_other_request() -> None:
    bench, graph = Bench(), Doubling()
    problems: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))

    def fail(_entry: QueueEntry) -> None:
        raise RuntimeError("a bug")

    bench.batcher.submit(_rows(graph, [1]), Call(), fail)
    other = bench.submit(graph, [2])
    await _settled()
    await bench.compute_all()
    assert await other == [4]
    (problem,) = problems
    assert str(problem["exception"]) == "a bug"


def _rows(graph: Doubling, values: list[float]) -> InferenceRequest[Any]:
    x = np.array(values, np.float32)[:, None]
    return InferenceRequest(graph.operation, len(x), {"x": x}, lambda out: out["y"][:, 0].tolist())
