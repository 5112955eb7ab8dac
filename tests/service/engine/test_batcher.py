"""The batcher alone: time stepped by hand, batches run when the test says so."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.engine.batch import Operation, Work
from service.engine.batcher import ALONE_SECONDS, INLINE_SECONDS, LONE_SECONDS, Batcher
from service.engine.call import Call
from service.engine.pool import Pool
from service.errors import DeadlineExceeded


class Doubling:
    """A graph that doubles, and remembers the batches it was given."""

    def __init__(
        self,
        name: str = "doubling",
        batch_rows: int = 8,
        seconds: float = 1.0,
        turn_rows: int | None = None,
    ) -> None:
        self.name = name
        self.batch_rows = batch_rows
        self.turn_rows = batch_rows if turn_rows is None else turn_rows
        self.batches: list[list[float]] = []
        self.error: Exception | None = None
        self._seconds = seconds
        self.operation = Operation(self, ("y",))

    def seconds(self, rows: int) -> float:
        return rows * self._seconds

    def run(self, inputs: Any, outputs: Any = ()) -> Any:
        if self.error is not None:
            raise self.error
        self.batches.append(inputs["x"][:, 0].tolist())
        return dict.fromkeys(outputs, 2 * inputs["x"])


class Bench:
    """A batcher whose batches wait until they are let run."""

    def __init__(self, workers: int = 1, **options: float):
        self.now = 0.0
        self.told: list[tuple[str, Any]] = []
        self.waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []
        self.batcher = Batcher(
            lambda work, then: self.waiting.append((work, then)),
            workers,
            self,
            clock=lambda: self.now,
            **options,
        )

    def batch(self, graph: Any, rows: int, seconds: float) -> None:
        self.told.append(("batch", (graph.name, rows, seconds)))

    def queued(self, seconds: float) -> None:
        self.told.append(("queued", seconds))

    def dropped(self, reason: str) -> None:
        self.told.append(("dropped", reason))

    def failed(self, graph: Any, error: Exception) -> None:
        self.told.append(("failed", (graph.name, str(error))))

    def submit(
        self, graph: Doubling, values: list[float], call: Call | None = None, **changes: Any
    ) -> asyncio.Future[Any]:
        x = np.array(values, np.float32)[:, None]
        fields: dict[str, Any] = {
            "inputs": {"x": x},
            "finish": lambda outputs: outputs["y"][:, 0].tolist(),
        }
        work: Work[Any] = Work(graph.operation, len(values), **(fields | changes))
        return self.batcher.run(work, call or Call())

    async def let_run(self, batches: int = 1) -> None:
        for _ in range(batches):
            await _settled()
            work, then = self.waiting.pop(0)
            work()
            then()
            await _settled()

    async def run_all(self) -> None:
        await _settled()
        while self.waiting:
            await self.let_run()


async def _settled() -> None:
    for _ in range(6):
        await asyncio.sleep(0)


def test_a_lone_call_is_computed_at_once() -> None:
    async def scene() -> None:
        bench, graph, call = Bench(), Doubling(), Call()
        task = bench.submit(graph, [1, 2], call)
        await _settled()
        assert len(bench.waiting) == 1
        await bench.let_run()
        assert await task == [2, 4]
        assert call.timing.batch_rows == 2

    asyncio.run(scene())


def test_what_comes_in_one_turn_of_the_loop_goes_together() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        tasks = [bench.submit(graph, [value]) for value in (1, 2, 3, 4)]
        await bench.run_all()
        assert graph.batches == [[1, 2, 3, 4]]
        assert [await task for task in tasks] == [[2], [4], [6], [8]]

    asyncio.run(scene())


def test_what_waits_is_taken_together_the_moment_a_worker_is_free() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        calls = [Call() for _ in range(4)]
        tasks = [bench.submit(graph, [0], calls[0])]
        await _settled()
        for value in (1, 2, 3):
            tasks.append(bench.submit(graph, [value], calls[value]))
            await _settled()
        await bench.run_all()
        assert graph.batches == [[0], [1, 2, 3]]
        assert [await task for task in tasks] == [[0], [2], [4], [6]]
        assert [call.timing.batch_rows for call in calls] == [1, 3, 3, 3]

    asyncio.run(scene())


def test_a_large_call_is_cut_and_delays_a_small_one_by_one_batch_that_runs_and_one_more() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling(batch_rows=4)
        large = bench.submit(graph, list(range(14)))
        await _settled()
        small = bench.submit(graph, [100])
        await bench.let_run(3)
        assert small.done()
        assert not large.done()
        await bench.run_all()
        assert await large == [2 * value for value in range(14)]
        assert graph.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [100, 8, 9, 10], [11, 12, 13]]

    asyncio.run(scene())


def test_a_batch_of_many_calls_may_be_larger_than_the_turn_of_one() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling(batch_rows=8, turn_rows=3)
        tasks = [bench.submit(graph, rows) for rows in ([1, 2, 3, 4], [5], [6, 7, 8, 9, 10, 11])]
        await bench.run_all()
        assert [await task for task in tasks] == [
            [2, 4, 6, 8],
            [10],
            [12, 14, 16, 18, 20, 22],
        ]
        assert graph.batches == [[1, 2, 3, 5, 6, 7, 8], [4, 9, 10, 11]]
        large = bench.submit(graph, list(range(7)))
        await bench.run_all()
        await large
        assert graph.batches[2:] == [[0, 1, 2], [3, 4, 5], [6]]

    asyncio.run(scene())


def test_workers_that_are_free_share_what_is_waiting() -> None:
    async def scene() -> None:
        bench, graph = Bench(workers=2), Doubling(batch_rows=16, turn_rows=2)
        tasks = [bench.submit(graph, [value]) for value in range(9)]
        await _settled()
        assert len(bench.waiting) == 2
        await bench.run_all()
        await asyncio.gather(*tasks)
        assert graph.batches == [[0, 1, 2, 3, 4], [5, 6, 7, 8]]

    asyncio.run(scene())


def test_the_parts_of_a_large_call_are_computed_by_all_workers_and_end_in_any_order() -> None:
    async def scene() -> None:
        bench, graph, call = Bench(workers=3), Doubling(batch_rows=4), Call()
        task = bench.submit(graph, list(range(10)), call)
        await _settled()
        assert len(bench.waiting) == 3
        bench.waiting.reverse()
        await bench.run_all()
        assert await task == [2 * value for value in range(10)]
        assert call.timing.batch_rows == 4

    asyncio.run(scene())


def test_inputs_may_be_made_by_the_worker_rows_by_rows() -> None:
    made: list[tuple[int, int]] = []

    def make(start: int, stop: int) -> dict[str, Any]:
        made.append((start, stop))
        return {"x": np.arange(start, stop, dtype=np.float32)[:, None]}

    async def scene() -> None:
        bench, graph = Bench(), Doubling(batch_rows=4)
        task = bench.submit(graph, [0.0] * 10, inputs=make)
        await _settled()
        assert made == []
        await bench.run_all()
        assert await task == [2 * value for value in range(10)]
        assert made == [(0, 4), (4, 8), (8, 10)]

    asyncio.run(scene())


def test_what_comes_before_and_after_the_graph_is_done_once_for_a_batch() -> None:
    seen: list[int] = []

    def halved(given: Any) -> Any:
        seen.append(len(given["x"]))
        return {"x": given["x"] / 2}

    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        graph.operation = Operation(
            graph, ("y",), halved, lambda inputs, outputs: {"y": outputs["y"] + inputs["x"]}
        )
        tasks = [bench.submit(graph, [2]), bench.submit(graph, [4, 6])]
        await bench.run_all()
        assert [await task for task in tasks] == [[3], [6, 9]]
        assert seen == [3]

    asyncio.run(scene())


def test_a_short_batch_is_computed_in_the_loop_and_a_long_one_is_not() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling(seconds=INLINE_SECONDS / 2)
        both = [bench.submit(graph, [1]), bench.submit(graph, [2])]
        await _settled()
        assert [await each for each in both] == [[2], [4]]
        assert not bench.waiting
        tasks = [bench.submit(graph, [1, 2]), bench.submit(graph, [3])]
        await _settled()
        assert len(bench.waiting) == 1
        # Nor is a short one while others are computed: it would not be alone.
        late = bench.submit(graph, [4])
        await _settled()
        assert not late.done()
        await bench.run_all()
        assert [await each for each in (*tasks, late)] == [[2, 4], [6], [8]]

    asyncio.run(scene())


def test_one_call_alone_is_computed_in_the_loop_for_longer() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling(seconds=LONE_SECONDS / 2)
        assert LONE_SECONDS > INLINE_SECONDS
        assert await bench.submit(graph, [1, 2]) == [2, 4]
        task = bench.submit(graph, [1, 2, 3])
        await _settled()
        assert len(bench.waiting) == 1
        # The other computes, so that this one would keep it from being answered.
        late = bench.submit(graph, [4])
        await _settled()
        assert not late.done()
        await bench.run_all()
        assert (await task, await late) == ([2, 4, 6], [8])

    asyncio.run(scene())


def test_where_there_is_no_other_core_longer_ones_are_as_well() -> None:
    async def scene() -> None:
        bench, graph = Bench(inline=ALONE_SECONDS), Doubling(seconds=ALONE_SECONDS / 2)
        assert await bench.submit(graph, [1, 2]) == [2, 4]
        task = bench.submit(graph, [1, 2, 3])
        await _settled()
        assert len(bench.waiting) == 1
        await bench.run_all()
        assert await task == [2, 4, 6]

    asyncio.run(scene())


def test_a_window_gathers_rows_until_it_ends_or_the_batch_is_full() -> None:
    async def scene() -> None:
        bench, graph = Bench(window=0.02), Doubling(batch_rows=3)
        first = bench.submit(graph, [1])
        await _settled()
        assert not bench.waiting
        bench.submit(graph, [2])
        bench.submit(graph, [3])
        await _settled()
        assert len(bench.waiting) == 1  # full
        await bench.run_all()
        assert await first == [2]
        alone = bench.submit(graph, [4])
        await _settled()
        assert not bench.waiting
        bench.now += 0.03
        await asyncio.sleep(0.03)
        await bench.run_all()
        assert await alone == [8]
        assert graph.batches == [[1, 2, 3], [4]]

    asyncio.run(scene())


def test_kinds_take_turns() -> None:
    async def scene() -> None:
        bench = Bench()
        first, second = Doubling("first", 1), Doubling("second", 1)
        tasks = [bench.submit(first, [1, 2, 3]), bench.submit(second, [1, 2, 3])]
        await bench.run_all()
        await asyncio.gather(*tasks)
        ran = [what[0] for operation, what in bench.told if operation == "batch"]
        assert ran == ["first", "second"] * 3

    asyncio.run(scene())


def test_a_deadline_that_passes_in_the_queue_drops_the_rows_uncomputed() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        bench.submit(graph, [1])
        await _settled()
        late = bench.submit(graph, [2], Call(deadline=5.0))
        in_time = bench.submit(graph, [3], Call(deadline=6.0))
        await _settled()
        bench.now = 5.0
        await bench.run_all()
        with pytest.raises(DeadlineExceeded, match="1 of 1 rows not computed"):
            await late
        assert await in_time == [6]
        assert graph.batches == [[1], [3]]
        assert ("dropped", "deadline") in bench.told

    asyncio.run(scene())


@pytest.mark.parametrize("way", ["task", "call"])
def test_a_caller_who_leaves_takes_its_rows_along_and_the_batch_goes_on(way: str) -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        left = False
        bench.submit(graph, [1])
        await _settled()
        leaving = bench.submit(graph, [2], Call(cancelled=lambda: left))
        staying = bench.submit(graph, [3])
        await _settled()
        if way == "task":
            leaving.cancel()
        left = way == "call"
        await bench.run_all()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert await staying == [6]
        assert graph.batches == [[1], [3]]
        assert ("dropped", "cancelled") in bench.told

    asyncio.run(scene())


def test_a_caller_who_leaves_while_its_batch_runs_does_no_harm() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        leaving = bench.submit(graph, [1, 2, 3])
        await _settled()
        staying = bench.submit(graph, [4])
        await _settled()
        leaving.cancel()
        await bench.run_all()
        assert await staying == [8]
        again = bench.submit(graph, [5])
        await bench.run_all()
        assert await again == [10]

    asyncio.run(scene())


def test_the_rest_of_a_large_call_is_not_computed_once_its_caller_left() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling(batch_rows=2)
        task = bench.submit(graph, list(range(100)))
        await bench.let_run(2)
        task.cancel()
        await bench.run_all()
        assert len(graph.batches) <= 3

    asyncio.run(scene())


def test_what_one_caller_gets_wrong_does_not_touch_the_others() -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("broken")

    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        bad = [bench.submit(graph, [1], inputs=broken), bench.submit(graph, [1], finish=broken)]
        good = bench.submit(graph, [2])
        await bench.run_all()
        for task in bad:
            with pytest.raises(ValueError, match="broken"):
                await task
        assert await good == [4]

    asyncio.run(scene())


def test_a_large_call_that_goes_wrong_fails_once_and_its_rest_is_not_computed() -> None:
    def broken(start: int, stop: int) -> Any:
        if start == 2:
            raise ValueError("broken")
        return {"x": np.zeros((stop - start, 1), np.float32)}

    async def scene() -> None:
        bench, graph = Bench(), Doubling(batch_rows=2)
        task = bench.submit(graph, [0.0] * 20, inputs=broken)
        await bench.run_all()
        with pytest.raises(ValueError, match="broken"):
            await task
        assert len(graph.batches) <= 2

    asyncio.run(scene())


def test_a_graph_that_fails_fails_its_batch_and_the_next_one_runs() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        graph.error = RuntimeError("out of memory")
        tasks = [bench.submit(graph, [1])]
        await bench.run_all()
        with pytest.raises(RuntimeError, match="out of memory"):
            await tasks[0]
        assert ("failed", ("doubling", "out of memory")) in bench.told
        graph.error = None
        after = bench.submit(graph, [2])
        await bench.run_all()
        assert await after == [4]

    asyncio.run(scene())


def test_times_are_those_of_the_clock() -> None:
    async def scene() -> None:
        bench, graph, call = Bench(), Doubling(), Call()
        bench.submit(graph, [1])
        await _settled()
        bench.submit(graph, [2], call)
        await _settled()
        bench.now = 3.0
        await bench.let_run()
        await _settled()
        bench.now = 7.0
        await bench.run_all()
        timing = call.timing
        assert (timing.queue, timing.compute, timing.batch_rows) == (3.0, 4.0, 1)

    asyncio.run(scene())


@settings(max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    batch_rows=st.integers(1, 16),
    turn_rows=st.integers(1, 16),
    workers=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_everyone_gets_their_own_rows_however_batches_fall(
    sizes: list[int], batch_rows: int, turn_rows: int, workers: int, order: Any
) -> None:
    async def scene() -> None:
        bench = Bench(workers)
        turn = min(turn_rows, batch_rows)
        graphs = [Doubling(name, batch_rows, turn_rows=turn) for name in "ab"]
        wanted, tasks, value = [], [], 0
        for size in sizes:
            rows = [float(each) for each in range(value, value + size)]
            value += size
            wanted.append([2 * each for each in rows])
            tasks.append(bench.submit(order.choice(graphs), rows))
            if order.random() < 0.5:
                await _settled()
        await _settled()
        while bench.waiting:
            # Workers end in any order.
            bench.waiting.insert(0, bench.waiting.pop(order.randrange(len(bench.waiting))))
            await bench.let_run()
        assert [await task for task in tasks] == wanted
        ran = [row for graph in graphs for batch in graph.batches for row in batch]
        assert sorted(ran) == list(range(value))
        assert max(len(batch) for graph in graphs for batch in graph.batches) <= batch_rows

    asyncio.run(scene())


def test_a_pool_computes_beside_the_loop_and_waits_for_what_it_has_begun() -> None:
    done: list[str] = []

    async def scene() -> None:
        pool, graph = Pool(2), Doubling(batch_rows=4)
        assert len(pool) == 2
        bench = Bench()
        bench.batcher = Batcher(pool, len(pool), bench)
        values = [float(value) for value in range(50)]
        tasks = [bench.submit(graph, values) for _ in range(8)]
        assert await asyncio.gather(*tasks) == [[2 * value for value in values]] * 8
        pool(lambda: done.append("computed"), lambda: done.append("told"))
        pool.close()
        assert done == ["computed"]
        await asyncio.sleep(0)
        assert done == ["computed", "told"]

    asyncio.run(scene())


def test_a_call_without_a_deadline_waits_for_ever() -> None:
    assert Call().deadline == math.inf
