"""Runs graphs on rows of many callers at once.

What came in one turn of the loop or the next ones, or was waiting when a worker became free,
is computed together. There is no waiting window unless an operator asks for one: a lone call is
never delayed, and under load batches grow by themselves. Rows are bit-equal in batches
of every size (export proves it), so that nobody can tell from an answer whom it was
computed with.

A call of many rows takes part in several batches, also at the same time, and after
each goes to the back of its queue; operations of work take turns likewise. Others thus delay
a small call by the batches that run when it comes and about one more. A turn of one call is
what takes about two milliseconds, and a batch of many calls about eight
(`runtime.Graph.measure`): with as many waiting they wait longer than that anyway, and the
caches are lost less often to the graph by those who read and write calls.
"""

import asyncio
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

from service.engine.batch import Batch, Entry, Graph, Operation, Work
from service.engine.call import Call
from service.errors import DeadlineExceeded

T = TypeVar("T")

#: A batch that takes no longer than this is computed in the loop itself: to hand it to
#: another thread and its result back would take longer (docs/performance.md).
INLINE_SECONDS: Final = 600e-6
#: The same where there is no other core for the loop to go on beside it; others would wait for
#: the core instead.
ALONE_SECONDS: Final = 3e-3
#: The same where it is one call's and there is no other: nobody waits for the loop. To wake a
#: thread, and the loop again, costs such a call a quarter of a millisecond.
LONE_SECONDS: Final = 1e-3
# However much keeps coming, after so many turns of the loop a batch goes.
_MOST_TURNS: Final = 4


class Observer(Protocol):
    """Told of every batch, in the loop's thread."""

    def batch(self, graph: Any, rows: int, seconds: float) -> None:
        """A batch has been computed."""

    def queued(self, seconds: float) -> None:
        """A call's first rows began to be computed after so long."""

    def dropped(self, reason: str) -> None:
        """A call's rows will not be computed: `deadline` or `cancelled`."""

    def failed(self, graph: Any, error: Exception) -> None:
        """A graph failed on a batch."""


class Batcher:
    """One queue, emptied by workers.

    All its methods are called in one event loop, which owns the queue; only the
    computing goes elsewhere.

    Args:
        execute: Runs a function beside the loop, and then another one in it.
        workers: How many functions it may be given at once.
        observer: Told of every batch.
        window: Seconds that a batch which is not full waits for more rows.
        inline: The longest batch that is computed in the loop itself, in seconds; one call's
            alone may take LONE_SECONDS. 0 for none.
        clock: Seconds that only grow, those of `Call.deadline`.
    """

    def __init__(
        self,
        execute: Callable[[Callable[[], None], Callable[[], None]], None],
        workers: int,
        observer: Observer,
        *,
        window: float = 0.0,
        inline: float = INLINE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._execute = execute
        self._workers = self._free = workers
        self._observer = observer
        self._window = window
        self._inline = inline
        self._lone = max(inline, LONE_SECONDS) if inline else 0.0
        self._clock = clock
        self._waiting: OrderedDict[Operation, deque[Entry]] = OrderedDict()
        self._scheduled = self._came = False

    def run(self, work: Work[T], call: Call) -> asyncio.Future[T]:
        """Computes rows, together with those of others.

        If the future, or the task that awaits it, is cancelled, what is not yet computed
        never is.

        Args:
            work: What to compute.
            call: For whom; its timing is added to.

        Returns:
            What `work.finish` makes, or the outputs by their names.

        Raises (where it is awaited):
            DeadlineExceeded: The call's deadline passed before the last row was due.
            Exception: What `work.inputs`, the graph or `work.finish` raised.
        """
        loop = asyncio.get_running_loop()
        entry = Entry(work, call, loop.create_future(), self._clock())
        entries = self._waiting.get(work.operation)
        if entries is None:
            self._waiting[work.operation] = entries = deque()
        entries.append(entry)
        self._schedule(loop)
        return entry.future

    def _schedule(self, loop: asyncio.AbstractEventLoop) -> None:
        """Lets those go together that come in turns of the loop one after the other."""
        self._came = True
        if not self._scheduled and self._free:
            self._scheduled = True
            loop.call_soon(self._look, loop, _MOST_TURNS)

    def _look(self, loop: asyncio.AbstractEventLoop, turns: int) -> None:
        """Goes on once a turn of the loop, which reads what has come, has brought nothing."""
        if self._came and turns:
            self._came = False
            loop.call_soon(self._look, loop, turns - 1)
        else:
            self._scheduled = False
            self._dispatch()

    def _dispatch(self) -> None:
        while self._free and self._waiting:
            batch = self._next_batch()
            if batch is None:
                return
            batch.began = self._clock()
            for entry, start, _ in batch.segments:
                if start == 0:
                    waited = batch.began - entry.arrived
                    entry.call.timing.queue += waited
                    self._observer.queued(waited)
            lone = len(batch.segments) == 1
            if (
                self._free == self._workers
                and not self._waiting
                and batch.operation.graph.seconds(batch.rows)
                <= (self._lone if lone else self._inline)
            ):
                batch.compute()
                self._settle(batch)
                return
            self._free -= 1
            self._execute(batch.compute, lambda batch=batch: self._computed(batch))  # type: ignore[misc]

    def _computed(self, batch: Batch) -> None:
        self._free += 1
        self._settle(batch)
        self._dispatch()

    def _next_batch(self) -> Batch | None:
        """Takes rows from the front of the queue whose turn it is."""
        for operation in list(self._waiting):
            entries = self._waiting.pop(operation)
            if self._window and self._holds_back(operation, entries):
                self._waiting[operation] = entries
                continue
            segments: list[tuple[Entry, int, int]] = []
            room = most = self._room(operation.graph, entries)
            turn = operation.graph.turn_rows
            # Calls whose rows do not all fit go to the back, and have their next turns there.
            cut: list[Entry] = []
            while entries and room:
                entry = entries.popleft()
                if self._dropped(entry):
                    continue
                start = entry.taken
                stop = min(entry.work.rows, start + min(room, turn))
                entry.taken = stop
                segments.append((entry, start, stop))
                room -= stop - start
                if stop < entry.work.rows:
                    cut.append(entry)
            entries.extend(cut)
            if entries:
                self._waiting[operation] = entries
            if segments:
                return Batch(operation, segments, most - room)
        return None

    def _room(self, graph: Graph, entries: deque[Entry]) -> int:
        """Most rows of the next batch: the workers that are free share what is waiting."""
        if self._free == 1 or graph.batch_rows == graph.turn_rows:
            return graph.batch_rows
        share = -(-sum([entry.work.rows - entry.taken for entry in entries]) // self._free)
        return min(graph.batch_rows, max(graph.turn_rows, share))

    def _holds_back(self, operation: Operation, entries: deque[Entry]) -> bool:
        """Whether a batch is not full and its first rows have not waited long enough."""
        left = entries[0].arrived + self._window - self._clock()
        rows = sum(entry.work.rows - entry.taken for entry in entries)
        if left <= 0 or rows >= operation.graph.batch_rows:
            return False
        asyncio.get_running_loop().call_later(left, self._dispatch)
        return True

    def _dropped(self, entry: Entry) -> bool:
        """Whether nobody waits for it any more."""
        if entry.error is not None:
            return True
        if entry.future.done() or entry.call.cancelled():
            entry.future.cancel()
            self._observer.dropped("cancelled")
            return True
        if entry.call.deadline != math.inf and self._clock() >= entry.call.deadline:
            entry.future.set_exception(
                DeadlineExceeded(
                    f"the deadline passed with {entry.work.rows - entry.settled} of "
                    f"{entry.work.rows} rows not computed"
                )
            )
            self._observer.dropped("deadline")
            return True
        return False

    def _settle(self, batch: Batch) -> None:
        """Tells of a batch, and those whose last rows were in it."""
        seconds = self._clock() - batch.began
        if batch.error is not None:
            self._observer.failed(batch.operation.graph, batch.error)
        self._observer.batch(batch.operation.graph, batch.rows, seconds)
        for entry, start, stop in batch.segments:
            entry.settled += stop - start
            timing = entry.call.timing
            timing.compute += seconds
            timing.batch_rows = max(timing.batch_rows, batch.rows)
            future = entry.future
            if future.done():
                continue
            error = batch.error or entry.error
            if error is not None:
                entry.error = error
                future.set_exception(error)
            elif entry.settled == entry.work.rows:
                future.set_result(entry.value)
