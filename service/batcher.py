"""Runs graphs on rows of many callers at once.

What is waiting for the same graph is taken the moment a worker is free: there is no
waiting window, so that a lone call is never delayed, and under load batches grow by
themselves. Rows are bit-equal in batches of every size (export proves it), so that
nobody can tell from an answer whom it was computed with.

A call of more rows than a batch takes part in several, one after the other, and each
time goes to the back of its queue; graphs take turns likewise. A large call thus
delays a small one by one batch.
"""

import asyncio
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.call import Call, Timing
from service.errors import DeadlineExceeded
from service.runtime import Graph

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")
Execute = Callable[[Callable[[], None]], Awaitable[None]]

#: Most rows in one batch.
BATCH_ROWS = 256


class Observer(Protocol):
    """Told of every batch, in the loop's thread."""

    def batch(self, graph: Graph, rows: int, seconds: float) -> None:
        """A batch has been computed."""

    def queued(self, seconds: float) -> None:
        """A call's first rows began to be computed after so long."""

    def dropped(self, reason: str) -> None:
        """A call's rows will not be computed: `deadline` or `cancelled`."""

    def failed(self, graph: Graph, error: Exception) -> None:
        """A graph failed on a batch."""


@dataclass(frozen=True)
class Work(Generic[T]):
    """What a caller wants computed.

    Attributes:
        graph: By which graph.
        outputs: Which of its outputs.
        rows: How many rows.
        prepare: Returns the graph's inputs, so many rows each; called once, by the
            worker and not in the loop's thread, when the first rows are due.
        finish: Makes the result of the inputs and the outputs, likewise.
    """

    graph: Graph
    outputs: tuple[str, ...]
    rows: int
    prepare: Callable[[], Arrays]
    finish: Callable[[Arrays, Arrays], T]


@dataclass(eq=False)
class _Entry:
    """Work in the queue: how far it is."""

    work: Work[Any]
    call: Call
    future: asyncio.Future[tuple[Any, Timing]]
    arrived: float
    done: int = 0
    inputs: Arrays | None = None
    pieces: list[dict[str, NDArray[np.float32]]] = field(default_factory=list)
    queue: float = 0.0
    compute: float = 0.0
    batch_rows: int = 0
    value: Any = None
    error: BaseException | None = None


@dataclass(frozen=True)
class _Segment:
    """Some consecutive rows of an entry, in a batch."""

    entry: _Entry
    start: int
    stop: int


class Batcher:
    """One queue and the workers that empty it.

    All its methods are called in one event loop, which owns the queue; only the
    computing goes elsewhere.

    Args:
        execute: Runs a function beside the loop and awaits its end.
        workers: How many functions it may be given at once.
        observer: Told of every batch.
        batch_rows: Most rows in one batch.
        clock: Seconds that only grow, those of `Call.deadline`.
    """

    def __init__(
        self,
        execute: Execute,
        workers: int,
        observer: Observer,
        *,
        batch_rows: int = BATCH_ROWS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._execute = execute
        self._free = workers
        self._observer = observer
        self._batch_rows = batch_rows
        self._clock = clock
        self._waiting: OrderedDict[tuple[int, tuple[str, ...]], deque[_Entry]] = OrderedDict()
        self._running: set[asyncio.Task[None]] = set()

    async def run(self, work: Work[T], call: Call) -> tuple[T, Timing]:
        """Computes rows, together with those of others.

        If the task that awaits this is cancelled, what is not yet computed never is.

        Args:
            work: What to compute.
            call: For whom.

        Returns:
            What `work.finish` made, and where the time went.

        Raises:
            DeadlineExceeded: The call's deadline passed before the last row was due.
            Exception: What `prepare`, the graph or `finish` raised.
        """
        future: asyncio.Future[tuple[T, Timing]] = asyncio.get_running_loop().create_future()
        entry = _Entry(work, call, future, self._clock())
        self._enqueue(entry)
        self._dispatch()
        return await future

    def _enqueue(self, entry: _Entry) -> None:
        # id() is a key as long as an entry in the queue holds the graph.
        key = id(entry.work.graph), entry.work.outputs
        self._waiting.setdefault(key, deque()).append(entry)

    def _dispatch(self) -> None:
        while self._free:
            batch = self._next_batch()
            if not batch:
                return
            self._free -= 1
            task = asyncio.get_running_loop().create_task(self._compute(batch))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    def _next_batch(self) -> list[_Segment]:
        """Takes rows from the front of the queue whose turn it is."""
        while self._waiting:
            key, entries = self._waiting.popitem(last=False)
            batch: list[_Segment] = []
            room = self._batch_rows
            while entries and room:
                entry = entries.popleft()
                if self._dropped(entry):
                    continue
                stop = min(entry.work.rows, entry.done + room)
                batch.append(_Segment(entry, entry.done, stop))
                room -= stop - entry.done
            if entries:
                self._waiting[key] = entries
            if batch:
                return batch
        return []

    def _dropped(self, entry: _Entry) -> bool:
        """Whether nobody waits for it any more."""
        if entry.future.done() or entry.call.cancelled():
            entry.future.cancel()
            self._observer.dropped("cancelled")
            return True
        if self._clock() >= entry.call.deadline:
            entry.future.set_exception(
                DeadlineExceeded(
                    f"the deadline passed with {entry.work.rows - entry.done} of "
                    f"{entry.work.rows} rows not computed"
                )
            )
            self._observer.dropped("deadline")
            return True
        return False

    async def _compute(self, batch: list[_Segment]) -> None:
        graph = batch[0].entry.work.graph
        began = self._clock()
        for segment in batch:
            if segment.start == 0:
                segment.entry.queue = began - segment.entry.arrived
                self._observer.queued(segment.entry.queue)
        try:
            await self._execute(lambda: _run(graph, batch))
        except Exception as error:  # noqa: BLE001 - a batch that fails must not end the others
            for segment in batch:
                segment.entry.error = segment.entry.error or error
            self._observer.failed(graph, error)
        finally:
            self._free += 1
        seconds = self._clock() - began
        rows = sum(segment.stop - segment.start for segment in batch)
        self._observer.batch(graph, rows, seconds)
        for segment in batch:
            self._settle(segment, rows, seconds)
        self._dispatch()

    def _settle(self, segment: _Segment, rows: int, seconds: float) -> None:
        """Hands an entry's result over, or puts it back for its next rows."""
        entry = segment.entry
        entry.done = segment.stop
        entry.compute += seconds
        entry.batch_rows = max(entry.batch_rows, rows)
        if entry.future.done():
            return
        if entry.error is not None:
            entry.future.set_exception(entry.error)
        elif entry.done < entry.work.rows:
            self._enqueue(entry)
        else:
            timing = Timing(entry.queue, entry.compute, entry.batch_rows)
            entry.future.set_result((entry.value, timing))


def _run(graph: Graph, batch: list[_Segment]) -> None:
    """Computes a batch and hands out its rows; in a worker."""
    sound: list[tuple[_Segment, Arrays]] = []
    for segment in batch:
        entry = segment.entry
        try:
            inputs = entry.work.prepare() if entry.inputs is None else entry.inputs
        except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
            entry.error = error
            continue
        entry.inputs = inputs
        sound.append((segment, inputs))
    if not sound:
        return
    names = sound[0][1].keys()
    parts = {
        name: [inputs[name][segment.start : segment.stop] for segment, inputs in sound]
        for name in names
    }
    joined = {
        name: each[0] if len(each) == 1 else np.concatenate(each) for name, each in parts.items()
    }
    answers = graph.run(joined, batch[0].entry.work.outputs)
    start = 0
    for segment, inputs in sound:
        stop = start + segment.stop - segment.start
        entry = segment.entry
        entry.pieces.append({name: array[start:stop] for name, array in answers.items()})
        start = stop
        if segment.stop == entry.work.rows:
            try:
                entry.value = entry.work.finish(inputs, _joined(entry.pieces))
            except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
                entry.error = error


def _joined(pieces: list[dict[str, NDArray[np.float32]]]) -> Arrays:
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
