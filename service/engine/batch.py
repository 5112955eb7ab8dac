"""Inference requests, their queue entries, and the batches that compute them."""

import asyncio
import threading
from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.call import Call
from service.models.speed import ImageSize, Limits

Arrays = Mapping[str, NDArray[Any]]
T = TypeVar("T")
# Guards entries whose rows several compute threads write at the same time.
_LOCK = threading.Lock()


class RunOptions(Protocol):
    """Options of one run of a graph.

    Attributes:
        terminate: If it is set during the run, that ends with an error at its next node.
    """

    terminate: bool


class Graph(Protocol):
    """Interface of a graph, implemented by `service.models.onnx.Graph`.

    Attributes:
        name: Name in metrics and the log.
    """

    name: str

    def limits(self, size: ImageSize) -> Limits:
        """The batch limits for images of a size."""

    def run(
        self, inputs: Arrays, outputs: tuple[str, ...], size: ImageSize, options: RunOptions | None
    ) -> Arrays:
        """Runs the graph: maps arrays by input name to arrays by output name."""

    def run_options(self) -> RunOptions:
        """Makes options for one run."""

    def release_memory(self) -> None:
        """Returns memory that earlier runs took to the system."""


class Operation:
    """A graph with its pre- and postprocessing; requests of one operation may share a batch.

    Args:
        graph: The graph.
        outputs: Names of the graph's outputs to compute.
        before: Preprocessing of a whole batch: the requests' arrays to the graph's inputs.
        after: Postprocessing of a whole batch: the graph's inputs and outputs to the output
            arrays of the requests.
        check: Raises if rows are invalid. Called once for a whole batch and, only if that
            raises, once for each request's rows.
        observe: Called with the graph's inputs and the output arrays of a whole batch; for slow
            rows, once their results have been handed on.

    Attributes:
        limits: The graph's limits for images of the golden size.
    """

    __slots__ = ("after", "before", "check", "graph", "limits", "observe", "outputs")

    def __init__(
        self,
        graph: Graph,
        outputs: tuple[str, ...],
        before: Callable[[Arrays], Arrays] = lambda inputs: inputs,
        after: Callable[[Arrays, Arrays], Arrays] = lambda _inputs, outputs: outputs,
        check: Callable[[Arrays], None] | None = None,
        observe: Callable[[Arrays, Arrays], None] | None = None,
    ):
        self.graph = graph
        self.limits = graph.limits(())
        self.outputs = outputs
        self.before = before
        self.after = after
        self.check = check
        self.observe = observe


class InferenceRequest(Generic[T]):
    """Rows to compute with an operation.

    Args:
        operation: The operation.
        rows: Number of rows.
        inputs: Arrays of that many rows by name; or a function of (start, stop) that returns
            the arrays of the rows start to stop - 1, called in a compute thread.
        finish: Converts the output arrays to the result, in a compute thread; None to return
            the arrays themselves.
        size: H and W of the images; empty for a model whose images all have one size. Only
            requests of one size share a batch.
    """

    __slots__ = ("finish", "inputs", "operation", "rows", "size")

    def __init__(
        self,
        operation: Operation,
        rows: int,
        inputs: Arrays | Callable[[int, int], Arrays],
        finish: Callable[[Arrays], T] | None = None,
        size: ImageSize = (),
    ):
        self.operation = operation
        self.rows = rows
        self.inputs = inputs
        self.finish = finish
        self.size = size


class QueueEntry:
    """A request in the queue, with its progress.

    Args:
        request: The request.
        call: The call that it belongs to.
        future: Completed with the result or the error.
        arrived: When it was enqueued, on the batcher's clock.

    Attributes:
        scheduled: Rows that have been put into a batch.
        written: Rows whose outputs are in `result`, guarded by `_LOCK`; stays 0 if all rows
            are in one batch.
        completed: Rows in batches that the event loop has marked as completed.
        result: The output arrays, filled batch by batch; replaced by the result of `finish`.
        error: Exception raised for some of its rows; the remaining rows are not computed.
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


#: Consecutive rows of an entry: (entry, start, stop), rows start to stop - 1.
Segment: TypeAlias = tuple[QueueEntry, int, int]


class Batch:
    """Segments that are concatenated and computed together.

    Args:
        operation: The operation to compute.
        segments: The segments.
        rows: Total number of their rows.
        size: ImageSize of the images.
        limits: The graph's limits for that size.

    Attributes:
        began: When it was dispatched, on the batcher's clock.
        error: Exception raised by the graph or its pre- or postprocessing.
        options: Options of the run if its rows are slow, else None.
    """

    __slots__ = (
        "_observed",
        "began",
        "error",
        "limits",
        "operation",
        "options",
        "rows",
        "segments",
        "size",
    )

    def __init__(
        self,
        operation: Operation,
        segments: list[Segment],
        rows: int,
        size: ImageSize,
        limits: Limits,
    ):
        self.operation = operation
        self.segments = segments
        self.rows = rows
        self.size = size
        self.limits = limits
        self.began = 0.0
        self.error: Exception | None = None
        self.options = operation.graph.run_options() if limits.slow else None
        self._observed: tuple[Arrays, Arrays] | None = None

    @property
    def terminated(self) -> bool:
        """Whether the run was ended early, because nobody waits for its row."""
        return self.options is not None and self.options.terminate

    def terminate_if_cancelled(self, future: asyncio.Future[Any]) -> None:
        """Ends the run of a slow row early if the future of its request was cancelled."""
        if self.options is not None and future.cancelled():
            self.options.terminate = True

    def compute(self) -> None:
        """Runs the graph and writes its outputs to the entries; called in a compute thread.

        Observes the batch as well, unless its rows are slow. Never raises: an error is stored on
        the entry that caused it, or else on the batch.
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
            except Exception as error:  # noqa: BLE001 - fails one caller, not the batch
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
                except Exception:  # noqa: BLE001 - the next line finds the caller
                    valid, parts = _checked_one_by_one(operation.check, valid, parts)
                    if not valid:
                        return
                    rows = _concatenated(parts)
            graph_inputs = operation.before(rows)
            outputs = operation.graph.run(graph_inputs, operation.outputs, self.size, self.options)
            outputs = operation.after(graph_inputs, outputs)
        except Exception as error:  # noqa: BLE001 - fails this batch only
            self.error = error
            return
        offset = 0
        for segment in valid:
            entry, start, stop = segment
            try:
                _write(segment, outputs, offset)
            except Exception as error:  # noqa: BLE001 - fails one caller, not the batch
                entry.error = error
            offset += stop - start
        if operation.observe is not None:
            self._observed = graph_inputs, outputs
            if not self.limits.slow:
                self.error = self.observe()

    def observe(self) -> Exception | None:
        """Passes a computed batch to its operation's `observe`, once.

        Returns:
            The exception that this raised.
        """
        observed, self._observed = self._observed, None
        if observed is not None and self.operation.observe is not None:
            try:
                self.operation.observe(*observed)
            except Exception as error:  # noqa: BLE001 - fails this batch only
                return error
        return None


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
        except Exception as error:  # noqa: BLE001 - fails one caller, not the batch
            segment[0].error = error
        else:
            valid.append((segment, part))
    return [segment for segment, _ in valid], [part for _, part in valid]


def _write(segment: Segment, outputs: Arrays, offset: int) -> None:
    """Copies a segment's outputs, at row `offset` of the batch's outputs, to its entry's result.

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
