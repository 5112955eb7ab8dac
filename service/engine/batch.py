"""Inference requests, their entries in the queue, and the batches that they are computed in."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.call import Call

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")
# Guards entries whose rows are in batches of several compute threads.
_LOCK = threading.Lock()


class Graph(Protocol):
    """A graph that computes rows; see `service.models.onnx.Graph`.

    Attributes:
        name: What it does, for metrics and the log.
        max_batch_rows: Most rows in one batch.
        max_call_rows: Most rows of one call in a batch.
    """

    name: str
    max_batch_rows: int
    max_call_rows: int

    def estimate_seconds(self, rows: int) -> float:
        """Expected time to compute a number of rows."""

    def run(self, inputs: Arrays, outputs: tuple[str, ...]) -> Arrays:
        """Computes rows: arrays by the names of the graph's inputs to arrays by its outputs'."""


class Operation:
    """A graph with what is done before and after it; its rows may share a batch.

    Args:
        graph: The graph.
        outputs: Names of the graph's outputs that are wanted.
        before: Maps the arrays of the requests to the graph's inputs, for a whole batch.
        after: Maps the graph's inputs and outputs to the arrays of the replies, likewise.
        check: Raises if rows are invalid. Called once for a whole batch, and for each
            request's rows only if that raises.
    """

    __slots__ = ("after", "before", "check", "graph", "outputs")

    def __init__(
        self,
        graph: Graph,
        outputs: tuple[str, ...],
        before: Callable[[Arrays], Arrays] = lambda inputs: inputs,
        after: Callable[[Arrays, Arrays], Arrays] = lambda _inputs, outputs: outputs,
        check: Callable[[Arrays], None] | None = None,
    ):
        self.graph = graph
        self.outputs = outputs
        self.before = before
        self.after = after
        self.check = check


class InferenceRequest(Generic[T]):
    """Rows to be put through an operation.

    Args:
        operation: The operation.
        rows: Number of rows.
        inputs: Arrays of that many rows; or a function from the first row and the one after
            the last to their arrays, called in a compute thread.
        finish: Makes the result from the output arrays, in a compute thread; None to return
            the arrays themselves.
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


class QueueEntry:
    """A request in the queue, and how far it is.

    Args:
        request: The request.
        call: The call that it belongs to.
        future: Completed with the result, or the error.
        arrived: When it was enqueued, by the batcher's clock.

    Attributes:
        scheduled: Rows that have been put into a batch.
        written: Rows whose outputs are in `result`, guarded by `_LOCK`; not counted if all
            rows are in one batch.
        completed: Rows whose batch is done, as the event loop has seen it.
        result: The output arrays, filled batch by batch; in the end what `finish` made.
        error: What went wrong with its rows; the rest of them is not computed.
    """

    __slots__ = (
        "arrived",
        "call",
        "completed",
        "error",
        "future",
        "request",
        "result",
        "scheduled",
        "written",
    )

    def __init__(
        self,
        request: InferenceRequest[Any],
        call: Call,
        future: asyncio.Future[Any],
        arrived: float,
    ):
        self.request = request
        self.call = call
        self.future = future
        self.arrived = arrived
        self.scheduled = 0
        self.written = 0
        self.completed = 0
        self.result: Any = None
        self.error: BaseException | None = None


#: Consecutive rows of an entry: the first one, and the one after the last.
Segment: TypeAlias = tuple[QueueEntry, int, int]


class Batch:
    """Segments that are computed together, one after the other.

    Args:
        operation: What their rows are put through.
        segments: The segments.
        rows: Their rows in all.

    Attributes:
        began: When it was dispatched, by the batcher's clock.
        error: What the graph, or what is done before and after it, raised.
    """

    __slots__ = ("began", "error", "operation", "rows", "segments")

    def __init__(self, operation: Operation, segments: list[Segment], rows: int):
        self.operation = operation
        self.segments = segments
        self.rows = rows
        self.began = 0.0
        self.error: Exception | None = None

    def compute(self) -> None:
        """Runs the graph and scatters its outputs; in a compute thread.

        Never raises: an error is kept on the entry that caused it, else on the batch.
        """
        valid: list[Segment] = []
        parts: list[Arrays] = []
        for entry, start, stop in self.segments:
            try:
                inputs = entry.request.inputs
                if callable(inputs):
                    part = inputs(start, stop)
                elif stop - start == entry.request.rows:
                    part = inputs
                else:
                    part = {name: array[start:stop] for name, array in inputs.items()}
            except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
                entry.error = error
                continue
            valid.append((entry, start, stop))
            parts.append(part)
        if not valid:
            return
        operation = self.operation
        try:
            rows = _concatenated(parts)
            if operation.check is not None:
                try:
                    operation.check(rows)
                except Exception:  # noqa: BLE001 - found out next: which caller's rows they are
                    valid, parts = _checked_one_by_one(operation.check, valid, parts)
                    if not valid:
                        return
                    rows = _concatenated(parts)
            graph_inputs = operation.before(rows)
            outputs = operation.after(
                graph_inputs, operation.graph.run(graph_inputs, operation.outputs)
            )
        except Exception as error:  # noqa: BLE001 - it fails this batch, and no other
            self.error = error
            return
        offset = 0
        for segment in valid:
            entry, start, stop = segment
            try:
                _write(segment, outputs, offset)
            except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
                entry.error = error
            offset += stop - start


def _concatenated(parts: list[Arrays]) -> Arrays:
    if len(parts) == 1:
        return parts[0]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _checked_one_by_one(
    check: Callable[[Arrays], None], segments: list[Segment], parts: list[Arrays]
) -> tuple[list[Segment], list[Arrays]]:
    """Returns the valid segments and their arrays; sets the error of the other entries."""
    valid = []
    for segment, part in zip(segments, parts, strict=True):
        try:
            check(part)
        except Exception as error:  # noqa: BLE001 - one caller's, not the batch's
            segment[0].error = error
        else:
            valid.append((segment, part))
    return [segment for segment, _ in valid], [part for _, part in valid]


def _write(segment: Segment, outputs: Arrays, offset: int) -> None:
    """Writes a segment's outputs, which begin at `offset` in the batch, to its entry's result.

    Once all rows of the entry are written, `finish` turns them into the result.
    """
    entry, start, stop = segment
    request = entry.request
    rows = slice(offset, offset + stop - start)
    if stop - start == request.rows:
        result = {name: array[rows] for name, array in outputs.items()}
    else:
        with _LOCK:
            if entry.result is None:
                entry.result = {
                    name: np.empty((request.rows, *array.shape[1:]), array.dtype)
                    for name, array in outputs.items()
                }
        result = entry.result
        for name, array in outputs.items():
            result[name][start:stop] = array[rows]
        with _LOCK:
            entry.written += stop - start
            if entry.written < request.rows:
                return
    entry.result = result if request.finish is None else request.finish(result)
