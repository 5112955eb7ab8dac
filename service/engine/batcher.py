"""Dynamic batching: requests of many callers are computed together.

A batch takes the requests enqueued within a few iterations of the event loop, or while all compute
threads were busy. There is no batching window unless an operator sets one: a lone call is never
delayed, and under load batches grow by themselves. Rows are bit-equal in batches of every size
(export proves it), so a reply does not depend on the requests that it shared a batch with.

A request of many rows is split over several batches, which may run at the same time. After each
batch it goes to the back of its caller's queue; callers take turns, and so do operations. So a
large call delays a small one by the running batches and about one more, and many calls of one
caller delay a call of another by as much.

Batches are limited by their expected time (`service.models.speed`): the rows of one call in a batch
take about two milliseconds, a batch of many calls about eight. A batch that large forms only under
load, when calls wait longer than eight milliseconds anyway. It also makes better use of the CPU
caches, which the code that reads and writes calls overwrites between batches.

Images of different sizes never share a batch: a batch has the size of the request whose turn it is,
and takes further requests of that size from the front of the callers' queues. A row that takes
longer than about 50 milliseconds is slow: it is a batch of its own, and slow batches leave one
thread to the others, so that a call of a millisecond never waits for one of seconds. Its run ends
early if its caller leaves. A row that takes a sixteenth of the memory below counts as slow. A row
of 16 to 50 milliseconds is long: long rows may occupy all threads, but one more batch of shorter
ones runs beside them (`service.engine.running`).

The memory of running batches is limited too. A slow row waits while others are computed whose
memory leaves no room for it; smaller ones behind it do not overtake it, or it might wait for ever.
Other batches, which take milliseconds and little memory, do not wait: they take fewer rows, at
least one.
"""

import asyncio
import math
import sys
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from service.engine.batch import Batch, Segment
from service.engine.call import Call
from service.engine.entry import QueueEntry, settle
from service.engine.request import InferenceRequest, Operation
from service.engine.running import Pace, Running, SlowGraphs
from service.engine.turns import Turns
from service.errors import DeadlineExceeded
from service.models.speed import ImageSize, Limits

T = TypeVar("T")
_Queues: TypeAlias = OrderedDict[Operation, Turns[QueueEntry]]

#: Longest batch, in seconds, that is computed on the event loop itself, because passing it to a
#: thread and its result back would take longer (docs/performance.md).
INLINE_SECONDS: Final = 600e-6
#: The same if there is only one core: a compute thread would occupy it, and so hold up the event
#: loop, just as long.
INLINE_SECONDS_ONE_CORE: Final = 3e-3
#: The same if only one call is in flight: no other call waits for the event loop, and waking a
#: thread, then the loop, would cost the call a quarter of a millisecond.
INLINE_SECONDS_ONE_CALL: Final = 1e-3
# Event-loop iterations after which a batch is dispatched even if requests keep arriving.
_MAX_ITERATIONS: Final = 4


class BatchObserver(Protocol):
    """Interface for the batcher's events; called in the event loop's thread."""

    def batch_computed(self, graph: Any, rows: int, seconds: float) -> None:
        """Called when a batch has completed, with or without an error."""

    def batch_failed(self, graph: Any, error: Exception) -> None:
        """Called when a batch has failed: its graph or the processing around it raised an error."""

    def requests_dequeued(self, seconds: Sequence[float]) -> None:
        """Called when a batch has the first rows of requests that were queued for `seconds`."""

    def request_dropped(self, reason: str) -> None:
        """Called when a request is dropped incomplete; `reason` is `deadline` or `cancelled`."""


class Batcher:
    """Queues requests by operation and computes them in batches.

    All methods are called in one event loop, which owns the queues; threads only compute
    batches.

    Args:
        execute: Runs a function in a thread, then a second one in the event loop; can run one
            more at the same time than `threads`, and at least 3.
        threads: Maximum batches at the same time, as for `Running`.
        observer: Receives the batcher's events.
        window: Seconds that a batch waits for more rows if it is not full.
        inline: Longest batch, in seconds, that is computed on the event loop; 0 to compute all
            batches in threads. If only one call is in flight, the limit is at least
            INLINE_SECONDS_ONE_CALL.
        max_bytes: Maximum memory of the batches that run at the same time; 0 for no limit.
        clock: Monotonic clock in seconds, that of `Call.deadline`.
    """

    def __init__(
        self,
        execute: Callable[[Callable[[], None], Callable[[], None]], None],
        threads: int,
        observer: BatchObserver,
        *,
        window: float = 0.0,
        inline: float = INLINE_SECONDS,
        max_bytes: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._execute = execute
        self._running = Running(threads, max_bytes or sys.maxsize)
        self._slow_graphs = SlowGraphs(execute, clock)
        self._observer = observer
        self._window = window
        self._inline = inline
        self._inline_one_call = max(inline, INLINE_SECONDS_ONE_CALL) if inline else 0.0
        self._clock = clock
        self._fast: _Queues = OrderedDict()
        # Queues of each pace, in the order of turns.
        self._queues: OrderedDict[Pace, _Queues] = OrderedDict(
            ((Pace.SLOW, OrderedDict()), (Pace.LONG, OrderedDict()), (Pace.FAST, self._fast))
        )
        # Empty queues for reuse: at low load, most calls would make one.
        self._spare: list[Turns[QueueEntry]] = []
        self._scheduled = self._enqueued = False

    def run(self, request: InferenceRequest[T], call: Call) -> asyncio.Future[T]:
        """Enqueues a request, and returns a future.

        Cancelling the future, or the task that awaits it, drops the rows that have not been
        dispatched.

        Args:
            request: The request.
            call: The call that it belongs to; its timing is updated.

        Returns:
            A future of the result of `request.finish`; of the output arrays by name if that is
            None.

        Raises (when it is awaited):
            DeadlineExceeded: The call's deadline passed before the last row was dispatched.
            Exception: Any exception of `request.inputs`, the graph or `request.finish`.
        """
        future = asyncio.get_running_loop().create_future()
        entry = self.submit(request, call, partial(settle, future))
        future.add_done_callback(partial(_cancel_with, entry))
        return future

    def submit(
        self, request: InferenceRequest[Any], call: Call, done: Callable[[QueueEntry], None]
    ) -> QueueEntry:
        """Enqueues a request.

        Args:
            request: The request.
            call: The call that it belongs to; its timing is updated.
            done: Called later, with the entry, once it has ended.

        Returns:
            The entry. Its outcome is as that of `run`, and so is cancelling it.
        """
        entry = QueueEntry(request, call, done, self._clock)
        operation, size = request.operation, request.size
        limits = operation.graph.limits(size) if size else operation.limits
        queues = self._queues[Pace.of(limits)] if limits.slow or limits.long else self._fast
        queue = queues.get(operation)
        if queue is None:
            queues[operation] = queue = self._spare.pop() if self._spare else Turns()
        queue.append(entry, call.caller)
        # The dispatch is deferred: requests of the same few loop iterations share a batch.
        self._enqueued = True
        if not self._scheduled and not self._running.full:
            self._scheduled = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._dispatch_when_quiet, loop, _MAX_ITERATIONS)
        return entry

    def _dispatch_when_quiet(self, loop: asyncio.AbstractEventLoop, iterations: int) -> None:
        """Dispatches once an event-loop iteration has enqueued nothing new.

        Args:
            loop: The running event loop.
            iterations: Maximum further iterations to wait.
        """
        if self._enqueued and iterations:
            self._enqueued = False
            loop.call_soon(self._dispatch_when_quiet, loop, iterations - 1)
        else:
            self._scheduled = False
            self._dispatch()

    def _dispatch(self) -> None:
        """Starts batches while there are requests and threads for them."""
        while any(self._queues.values()):
            batch = self._next_batch()
            if batch is None:
                return
            batch.began = self._clock()
            waits = []
            for entry, start, _ in batch.segments:
                if start == 0:
                    waited = batch.began - entry.arrived
                    entry.call.timing.queue += waited
                    waits.append(waited)
            if waits:
                self._observer.requests_dequeued(waits)
            one_call = len(batch.segments) == 1
            if (
                not self._running.fast
                and not self._fast
                and batch.limits.seconds(batch.rows)
                <= (self._inline_one_call if one_call else self._inline)
            ):
                batch.compute()
                self._complete(batch)
                continue
            self._running.add(batch)
            if batch.limits.slow:
                self._start_slow(batch)
            else:
                self._execute(batch.compute, lambda batch=batch: self._on_computed(batch))  # type: ignore[misc]

    def _on_computed(self, batch: Batch) -> None:
        self._running.remove(batch)
        self._complete(batch)
        self._dispatch()

    def _start_slow(self, batch: Batch) -> None:
        """Starts the batch of a slow row, whose call does not wait until it has been observed."""
        graph = batch.operation.graph
        self._slow_graphs.count(graph, 1)
        for entry, _, _ in batch.segments:
            entry.on_cancel += (batch.terminate,)
        loop = asyncio.get_running_loop()
        error: Exception | None = None

        def compute() -> None:
            nonlocal error
            batch.compute()
            loop.call_soon_threadsafe(self._complete, batch)
            error = batch.observe()

        def on_observed() -> None:
            self._running.remove(batch)
            self._slow_graphs.count(graph, -1)
            if error is not None:
                self._observer.batch_failed(graph, error)
            self._dispatch()

        self._execute(compute, on_observed)

    def _next_batch(self) -> Batch | None:
        """Takes the next batch from the queues; None if none is due or there is no thread for it.

        Slow rows, long ones and others take turns.
        """
        for pace, queues in self._queues.items():
            if not queues:
                continue
            left = self._running.left(pace)
            batch = self._take(queues, left) if left > 0 else None
            if batch is not None:
                self._queues.move_to_end(pace)
                return batch
        return None

    def _take(self, queues: _Queues, idle_threads: int) -> Batch | None:
        """Takes rows off the front of the next of these queues; None if none are due."""
        for operation in list(queues):
            queue = queues[operation]
            size, limits = queue.first().request.size, operation.limits
            if size:
                while queue and self._dropped(queue.first()):
                    queue.popleft()
                if queue:
                    size = queue.first().request.size
                limits = operation.graph.limits(size)
            if limits.slow and queue and not self._running.has_memory(limits.row_bytes):
                return None
            del queues[operation]
            if self._window and queue and self._waits_for_more(limits, queue):
                queues[operation] = queue
                continue
            segments: list[Segment] = []
            limit = left = self._batch_limit(limits, queue, idle_threads)
            # Requests with rows left over go behind the others of their callers.
            unfinished: list[QueueEntry] = []
            while queue and left:
                entry = queue.popleft_where(_of_size(size)) if size else queue.popleft()
                if entry is None:
                    break
                if self._dropped(entry):
                    continue
                start = entry.scheduled
                stop = min(entry.request.rows, start + min(left, limits.call_rows))
                entry.scheduled = stop
                segments.append((entry, start, stop))
                left -= stop - start
                if stop < entry.request.rows:
                    unfinished.append(entry)
            for entry in unfinished:
                queue.append(entry, entry.call.caller)
            if queue:
                queues[operation] = queue
            else:
                self._spare.append(queue)
            if segments:
                return Batch(operation, segments, limit - left, size, limits)
        return None

    def _batch_limit(self, limits: Limits, queue: Turns[QueueEntry], idle_threads: int) -> int:
        """Maximum rows of the next batch; queued rows are divided evenly among idle threads."""
        most = limits.batch_rows
        if limits.row_bytes:
            most = min(most, self._running.fitting_rows(limits.row_bytes))
        if idle_threads == 1 or most <= limits.call_rows:
            return most
        share = -(-_rows(queue.items_in_order()) // idle_threads)
        return min(most, max(limits.call_rows, share))

    def _waits_for_more(self, limits: Limits, queue: Turns[QueueEntry]) -> bool:
        """Whether to wait for more rows: the batch is not full and its window is still open.

        If so, schedules a dispatch for when the window closes.
        """
        left = min(entry.arrived for entry in queue.items_in_order()) + self._window - self._clock()
        if left <= 0 or _rows(queue.items_in_order()) >= limits.batch_rows:
            return False
        asyncio.get_running_loop().call_later(left, self._dispatch)
        return True

    def _dropped(self, entry: QueueEntry) -> bool:
        """Whether to skip an entry that has failed, was cancelled or is past its deadline.

        Ends a late entry.
        """
        if entry.ended or entry.error is not None:
            if entry.cancelled:
                self._observer.request_dropped("deadline" if entry.late else "cancelled")
            return True
        if entry.call.deadline != math.inf and self._clock() >= entry.call.deadline:
            rows = entry.request.rows
            self._end(
                entry,
                DeadlineExceeded(
                    f"the deadline passed with {rows - entry.completed} of {rows} rows not computed"
                ),
            )
            self._observer.request_dropped("deadline")
            return True
        return False

    def _complete(self, batch: Batch) -> None:
        """Reports a computed batch, and completes the requests that failed or have all rows."""
        seconds = self._clock() - batch.began
        graph = batch.operation.graph
        failure = None if batch.terminated else batch.error
        if failure is not None and not isinstance(failure, MemoryError):
            self._observer.batch_failed(graph, failure)
        self._observer.batch_computed(graph, batch.rows, seconds)
        for entry, start, stop in batch.segments:
            entry.completed += stop - start
            timing = entry.call.timing
            timing.compute += seconds
            if batch.rows > timing.batch_rows:
                timing.batch_rows = batch.rows
            if not entry.ended:
                error = batch.error or entry.error
                if error is not None or entry.completed == entry.request.rows:
                    self._end(entry, error)
            if entry.ended:
                entry.release()

    def _end(self, entry: QueueEntry, error: BaseException | None) -> None:
        try:
            entry.end(error)
        except Exception as bug:  # noqa: BLE001 - of one caller, and must not affect the others
            context = {"message": "the end of a request failed", "exception": bug}
            asyncio.get_running_loop().call_exception_handler(context)


def _cancel_with(entry: QueueEntry, future: asyncio.Future[Any]) -> None:
    """Cancels an entry whose future was cancelled."""
    if future.cancelled():
        entry.cancel()


def _of_size(size: ImageSize) -> Callable[[QueueEntry], bool]:
    return lambda entry: entry.request.size == size


def _rows(entries: Iterable[QueueEntry]) -> int:
    """Rows that have not been put into a batch."""
    return sum([entry.request.rows - entry.scheduled for entry in entries])
