"""The batcher alone: time stepped by hand, batches run when the test says so."""

import asyncio
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.batcher import Batcher, Work
from service.call import Call
from service.errors import DeadlineExceeded


class Doubling:
    """A graph that doubles, and remembers the batches it was given."""

    def __init__(self, name: str = "doubling") -> None:
        self.name = name
        self.batches: list[list[float]] = []
        self.error: Exception | None = None

    def run(self, inputs: Any, outputs: Any = ()) -> Any:
        if self.error is not None:
            raise self.error
        self.batches.append(inputs["x"][:, 0].tolist())
        return dict.fromkeys(outputs, 2 * inputs["x"])


class Bench:
    """A batcher whose batches wait until they are let run."""

    def __init__(self, workers: int = 1, batch_rows: int = 8):
        self.now = 0.0
        self.told: list[tuple[str, Any]] = []
        self.waiting: list[tuple[Callable[[], None], asyncio.Future[None]]] = []
        self.batcher = Batcher(
            self._execute, workers, self, batch_rows=batch_rows, clock=lambda: self.now
        )

    async def _execute(self, work: Callable[[], None]) -> None:
        gate: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((work, gate))
        await gate
        work()

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
    ) -> asyncio.Task[Any]:
        x = np.array(values, np.float32)[:, None]
        fields: dict[str, Any] = {
            "prepare": lambda: {"x": x},
            "finish": lambda _inputs, outputs: outputs["y"][:, 0].tolist(),
        }
        work = Work(graph, ("y",), len(values), **(fields | changes))  # type: ignore[arg-type]
        return asyncio.create_task(self.batcher.run(work, call or Call()))

    async def let_run(self, batches: int = 1) -> None:
        for _ in range(batches):
            await _settled()
            _, gate = self.waiting.pop(0)
            gate.set_result(None)
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
        bench, graph = Bench(), Doubling()
        task = bench.submit(graph, [1, 2])
        await _settled()
        assert len(bench.waiting) == 1
        await bench.let_run()
        value, timing = await task
        assert value == [2, 4]
        assert timing.batch_rows == 2

    asyncio.run(scene())


def test_what_waits_is_taken_together_the_moment_the_worker_is_free() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        tasks = [bench.submit(graph, [value]) for value in (1, 2, 3, 4)]
        await bench.run_all()
        assert graph.batches == [[1], [2, 3, 4]]
        assert [(await task)[0] for task in tasks] == [[2], [4], [6], [8]]
        assert [(await task)[1].batch_rows for task in tasks] == [1, 3, 3, 3]

    asyncio.run(scene())


def test_a_large_call_is_cut_and_delays_a_small_one_by_one_batch() -> None:
    async def scene() -> None:
        bench, graph = Bench(batch_rows=4), Doubling()
        large = bench.submit(graph, list(range(10)))
        small = bench.submit(graph, [100])
        await bench.let_run(2)
        assert small.done()
        assert not large.done()
        await bench.run_all()
        assert (await large)[0] == [2 * value for value in range(10)]
        assert graph.batches == [[0, 1, 2, 3], [100, 4, 5, 6], [7, 8, 9]]

    asyncio.run(scene())


def test_graphs_take_turns() -> None:
    async def scene() -> None:
        bench = Bench(batch_rows=1)
        first, second = Doubling("first"), Doubling("second")
        tasks = [bench.submit(first, [1, 2, 3]), bench.submit(second, [1, 2, 3])]
        await bench.run_all()
        await asyncio.gather(*tasks)
        ran = [what[0] for kind, what in bench.told if kind == "batch"]
        assert ran == ["first", "second"] * 3

    asyncio.run(scene())


def test_a_deadline_that_passes_in_the_queue_drops_the_rows_uncomputed() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        bench.submit(graph, [1])
        late = bench.submit(graph, [2], Call(deadline=5.0))
        in_time = bench.submit(graph, [3], Call(deadline=6.0))
        await _settled()
        bench.now = 5.0
        await bench.run_all()
        with pytest.raises(DeadlineExceeded, match="1 of 1 rows not computed"):
            await late
        assert (await in_time)[0] == [6]
        assert graph.batches == [[1], [3]]
        assert ("dropped", "deadline") in bench.told

    asyncio.run(scene())


@pytest.mark.parametrize("way", ["task", "call"])
def test_a_caller_who_leaves_takes_its_rows_along_and_the_batch_goes_on(way: str) -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        left = False
        bench.submit(graph, [1])
        leaving = bench.submit(graph, [2], Call(cancelled=lambda: left))
        staying = bench.submit(graph, [3])
        await _settled()
        if way == "task":
            leaving.cancel()
        left = way == "call"
        await bench.run_all()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await staying)[0] == [6]
        assert graph.batches == [[1], [3]]
        assert ("dropped", "cancelled") in bench.told

    asyncio.run(scene())


def test_a_caller_who_leaves_while_its_batch_runs_does_no_harm() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        leaving, staying = bench.submit(graph, [1, 2, 3]), None
        await _settled()
        staying = bench.submit(graph, [4])
        await _settled()
        leaving.cancel()
        await bench.run_all()
        assert (await staying)[0] == [8]
        again = bench.submit(graph, [5])
        await bench.run_all()
        assert (await again)[0] == [10]

    asyncio.run(scene())


def test_the_rest_of_a_large_call_is_not_computed_once_its_caller_left() -> None:
    async def scene() -> None:
        bench, graph = Bench(batch_rows=2), Doubling()
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
        bench.submit(graph, [0])
        bad = [bench.submit(graph, [1], prepare=broken), bench.submit(graph, [1], finish=broken)]
        good = bench.submit(graph, [2])
        await bench.run_all()
        for task in bad:
            with pytest.raises(ValueError, match="broken"):
                await task
        assert (await good)[0] == [4]

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
        assert (await after)[0] == [4]

    asyncio.run(scene())


def test_times_are_those_of_the_clock() -> None:
    async def scene() -> None:
        bench, graph = Bench(), Doubling()
        bench.submit(graph, [1])
        task = bench.submit(graph, [2])
        await _settled()
        bench.now = 3.0
        await bench.let_run()
        await _settled()
        bench.now = 7.0
        await bench.run_all()
        _, timing = await task
        assert (timing.queue, timing.compute, timing.batch_rows) == (3.0, 4.0, 1)

    asyncio.run(scene())


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    batch_rows=st.integers(1, 16),
    workers=st.integers(1, 3),
    order=st.randoms(use_true_random=False),
)
def test_everyone_gets_their_own_rows_however_batches_fall(
    sizes: list[int], batch_rows: int, workers: int, order: Any
) -> None:
    async def scene() -> None:
        bench, graphs = Bench(workers, batch_rows), [Doubling("a"), Doubling("b")]
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
        assert [(await task)[0] for task in tasks] == wanted
        ran = [row for graph in graphs for batch in graph.batches for row in batch]
        assert sorted(ran) == list(range(value))
        assert max(len(batch) for graph in graphs for batch in graph.batches) <= batch_rows

    asyncio.run(scene())


def test_a_call_without_a_deadline_waits_for_ever() -> None:
    assert Call().deadline == math.inf
