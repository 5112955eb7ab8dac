"""The batches that are being computed, and which may start beside them."""

import asyncio
from collections.abc import Callable
from enum import Enum
from typing import Final

from service.engine.batch import Batch
from service.engine.request import Graph
from service.models.speed import Limits

# Seconds after its last slow row that a graph's memory is returned to the system.
_RELEASE_SECONDS: Final = 10.0


class Pace(Enum):
    """How long a batch occupies its thread: see `Limits.long` and `Limits.slow`."""

    FAST = "fast"
    LONG = "long"
    SLOW = "slow"

    # The Python function of `Enum`, which hashes the name, is slower.
    __hash__ = object.__hash__

    @classmethod
    def of(cls, limits: Limits) -> "Pace":
        """The pace of the rows that these limits are for."""
        return cls.SLOW if limits.slow else cls.LONG if limits.long else cls.FAST


class Running:
    """The batches that are being computed.

    A slow row runs on all cores, a long one on one. Slow rows leave one thread to others. Long
    ones may occupy all threads; beside them one more fast batch may run, and so waits for none of
    them.

    Args:
        threads: Maximum batches at the same time, beside long ones one more. With 1, a slow row
            may run at the same time as another batch.
        max_bytes: Maximum memory of all batches.

    Attributes:
        fast: Number of fast batches.
        long: Number of long rows.
        slow: Number of slow rows.
        bytes: Memory of all batches.
    """

    def __init__(self, threads: int, max_bytes: int):
        self.fast = self.long = self.slow = self.bytes = 0
        self._threads = threads
        self._slots = max(2, threads)
        self._max_bytes = max_bytes

    @property
    def full(self) -> bool:
        """Whether batches of no pace may start now."""
        return self.left(Pace.FAST) <= 0 and self.long + self.fast + self.slow >= self._slots

    def left(self, pace: Pace) -> int:
        """Number of batches of a pace that may start now; 0 or less for none."""
        idle = self._slots - self.fast - self.long - self.slow
        if pace is Pace.FAST:
            return min(idle + (self.long > 0), self._threads - self.fast)
        if pace is Pace.LONG:
            return min(idle, self._threads - self.long)
        return min(idle, self._slots - 1 - self.slow)

    def has_memory(self, count: int) -> bool:
        """Whether a slow row that takes `count` bytes may start.

        If it is the only slow row, it may: one that takes more than the limit is refused earlier.
        """
        return not self.slow or self.bytes + count <= self._max_bytes

    def fitting_rows(self, row_bytes: int) -> int:
        """Rows of `row_bytes` each that a batch may have, at least 1."""
        return max(1, (self._max_bytes - self.bytes) // row_bytes)

    def add(self, batch: Batch) -> None:
        """Counts a batch that starts."""
        self._count(batch, 1)

    def remove(self, batch: Batch) -> None:
        """Counts a batch that has ended."""
        self._count(batch, -1)

    def _count(self, batch: Batch, change: int) -> None:
        if batch.limits.slow:
            self.slow += change
        elif batch.limits.long:
            self.long += change
        else:
            self.fast += change
        self.bytes += change * batch.rows * batch.limits.row_bytes


class SlowGraphs:
    """Graphs that compute slow rows: their memory is returned once none has run for a while.

    Args:
        execute: Runs a function in a thread, then a second one in the event loop.
        clock: Monotonic clock in seconds.
    """

    def __init__(
        self,
        execute: Callable[[Callable[[], None], Callable[[], None]], None],
        clock: Callable[[], float],
    ):
        self._execute = execute
        self._clock = clock
        # Slow rows of each graph that are running, and when the last began or ended.
        self._graphs: dict[Graph, tuple[int, float]] = {}

    def count(self, graph: Graph, change: int) -> None:
        """Adds a slow row to those that a graph computes, or subtracts it."""
        if not self._graphs:
            asyncio.get_running_loop().call_later(_RELEASE_SECONDS, self._release)
        running, _ = self._graphs.get(graph, (0, 0.0))
        self._graphs[graph] = running + change, self._clock()

    def _release(self) -> None:
        """Returns the memory of graphs whose slow rows ended some seconds ago to the system."""
        now = self._clock()
        for graph, (running, last) in list(self._graphs.items()):
            if not running and now - last >= _RELEASE_SECONDS:
                del self._graphs[graph]
                self._execute(graph.release_memory, lambda: None)
        if self._graphs:
            asyncio.get_running_loop().call_later(_RELEASE_SECONDS, self._release)
