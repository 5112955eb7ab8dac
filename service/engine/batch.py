"""Rows to be computed: what callers ask for, and the batches that it is computed in."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.call import Call

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")
# For the parts of one entry, that several workers compute.
_LOCK = threading.Lock()


class Graph(Protocol):
    """What rows go through; see `runtime.Graph`.

    Attributes:
        name: What it does.
        batch_rows: Most rows to give it at once.
        turn_rows: Most rows of one call among them.
    """

    name: str
    batch_rows: int
    turn_rows: int

    def seconds(self, rows: int) -> float:
        """About how long it takes for so many rows."""

    def run(self, inputs: Arrays, outputs: tuple[str, ...]) -> Arrays:
        """Computes rows."""


class Operation:
    """Work of one operation, the rows of which may share a batch.

    Args:
        graph: What they go through.
        outputs: Which of its outputs.
        before: Makes what callers gave into the graph's inputs, rows of a batch at a time.
        after: Makes the graph's inputs and outputs into what callers get, likewise.
        check: Raises where a caller's rows are not sound. It is asked once for a whole batch,
            and for each caller's rows only where that is not sound.
    """

    __slots__ = ("after", "before", "check", "graph", "outputs")

    def __init__(
        self,
        graph: Graph,
        outputs: tuple[str, ...],
        before: Callable[[Arrays], Arrays] = lambda given: given,
        after: Callable[[Arrays, Arrays], Arrays] = lambda _inputs, outputs: outputs,
        check: Callable[[Arrays], None] | None = None,
    ):
        self.graph = graph
        self.outputs = outputs
        self.before = before
        self.after = after
        self.check = check


class Work(Generic[T]):
    """What a caller wants computed.

    Args:
        operation: Of which operation.
        rows: How many rows.
        inputs: The rows, so many in each array; or a function that makes those from a
            first to before a last one, called by the worker and not in the loop.
        finish: Makes the result of the outputs, likewise; by default they are the result.
    """

    __slots__ = ("finish", "inputs", "operation", "rows")

    def __init__(
        self,
        operation: Operation,
        rows: int,
        inputs: Arrays | Callable[[int, int], Arrays],
        finish: Callable[[Arrays], T] | None = None,
    ):
        self.operation = operation
        self.rows = rows
        self.inputs = inputs
        self.finish = finish


class Entry:
    """Work in the queue: how far it is."""

    __slots__ = ("arrived", "call", "error", "future", "given", "settled", "taken", "value", "work")

    def __init__(self, work: Work[Any], call: Call, future: asyncio.Future[Any], arrived: float):
        self.work = work
        self.call = call
        self.future = future
        self.arrived = arrived
        # Rows that are or were in a batch, that are computed, and that the loop knows of.
        self.taken = 0
        self.given = 0
        self.settled = 0
        self.value: Any = None
        self.error: BaseException | None = None


class Batch:
    """Consecutive rows of entries that are computed together."""

    __slots__ = ("began", "error", "operation", "rows", "segments")

    def __init__(self, operation: Operation, segments: list[tuple[Entry, int, int]], rows: int):
        self.operation = operation
        self.segments = segments
        self.rows = rows
        self.began = 0.0
        self.error: Exception | None = None

    def compute(self) -> None:
        """Runs the graph and hands out its rows; in a worker. Errors are kept."""
        sound: list[tuple[Entry, int, int]] = []
        parts: list[Arrays] = []
        for entry, start, stop in self.segments:
            try:
                inputs = entry.work.inputs
                if callable(inputs):
                    part = inputs(start, stop)
                elif stop - start == entry.work.rows:
                    part = inputs
                else:
                    part = {name: array[start:stop] for name, array in inputs.items()}
            except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
                entry.error = error
                continue
            sound.append((entry, start, stop))
            parts.append(part)
        if not sound:
            return
        operation = self.operation
        try:
            joined = _joined(parts)
            if operation.check is not None:
                try:
                    operation.check(joined)
                except Exception:  # noqa: BLE001 - whose it is is found out next
                    sound, parts = _sound(operation.check, sound, parts)
                    if not sound:
                        return
                    joined = _joined(parts)
            wanted = operation.before(joined)
            answers = operation.after(wanted, operation.graph.run(wanted, operation.outputs))
        except Exception as error:  # noqa: BLE001 - it fails this batch, and no other
            self.error = error
            return
        first = 0
        for entry, start, stop in sound:
            last = first + stop - start
            try:
                _give(entry, start, stop, answers, first, last)
            except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
                entry.error = error
            first = last


def _joined(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _sound(
    check: Callable[[Arrays], None], segments: list[tuple[Entry, int, int]], parts: list[Arrays]
) -> tuple[list[tuple[Entry, int, int]], list[Arrays]]:
    """Those whose rows are sound; the others are given their errors."""
    kept = []
    for segment, part in zip(segments, parts, strict=True):
        try:
            check(part)
        except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
            segment[0].error = error
        else:
            kept.append((segment, part))
    return [segment for segment, _ in kept], [part for _, part in kept]


def _give(entry: Entry, start: int, stop: int, answers: Arrays, first: int, last: int) -> None:
    """Hands an entry its rows of a batch."""
    work = entry.work
    if stop - start == work.rows:
        value = {name: array[first:last] for name, array in answers.items()}
    else:
        with _LOCK:
            if entry.value is None:
                entry.value = {
                    name: np.empty((work.rows, *array.shape[1:]), array.dtype)
                    for name, array in answers.items()
                }
        value = entry.value
        for name, array in answers.items():
            value[name][start:stop] = array[first:last]
        with _LOCK:
            entry.given += stop - start
            if entry.given < work.rows:
                return
    entry.value = value if work.finish is None else work.finish(value)
