"""The batches that compute requests."""

import threading
from collections.abc import Callable
from typing import TypeAlias

import numpy as np

from service.engine.entry import QueueEntry
from service.engine.request import Arrays, Operation
from service.models.speed import ImageSize, Limits

# Guards entries whose rows several compute threads write at the same time.
_LOCK = threading.Lock()

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

    def terminate(self) -> None:
        """Ends the run of a slow row early: its request was cancelled."""
        if self.options is not None:
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
