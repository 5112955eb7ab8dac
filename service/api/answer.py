"""The answer to one request of the fast path, by the plan of its form."""

import asyncio
import struct
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np

from bundle import Manifest
from latentserve.v1 import tensor_pb2
from service.api.wire import Chunks, varint
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.engine import Compute
from service.engine.entry import QueueEntry, settle
from service.engine.operations import Labels
from service.engine.request import Arrays
from service.errors import InvalidArgument

# The Timing of a reply: its tag and length, tag and value of its fields 1 to 3 (doubles), then the
# tag of field 4 (a varint).
_TIMING: Final = struct.Struct("<BBBdBdBdB")
_TIMING_TAGS: Final = (1 << 3 | 1, 2 << 3 | 1, 3 << 3 | 1, 4 << 3)
_TIMING_BYTES: Final = _TIMING.size - 2


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything needed to answer requests of one form.

    Attributes:
        conditional: Manifest of the model if it is conditional, to read labels by; else None.
        rows: Rows of the request, N.
        dtype: Dtype of the request's tensor.
        shape: Shape that the graph takes: [N, C, H, W], or [N, D] or [N, c, h, w].
        nbytes: Length of the request's tensor data, in bytes.
        reserved: Bytes that admission counts for the call.
        compute: Validates the values and runs the graph.
        renamed: Name of the rows in errors of `compute`, and the caller's path of them.
        outputs: Name of each graph output in the reply, the serialised bytes before its data, and
            whether the data are copied.
        results: Each of these outputs as a message without its data.
        identity: The reply's model identity, serialised.
        timing: Tag of the timing in the reply.
    """

    conditional: Manifest | None
    rows: int
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    nbytes: int
    reserved: int
    compute: Compute
    renamed: tuple[str, str]
    outputs: tuple[tuple[str, bytes, bool], ...]
    results: Mapping[str, tensor_pb2.Tensor]
    identity: bytes
    timing: int


class Answer:
    """The answer to one request: an awaitable, or started and finished by who has no task for it.

    A task, its coroutines and futures take a fifth of the CPU time of a call of one image. So a
    transport may call `start`, and `finish` once it is told to.

    Args:
        admission: Bounds the rows and bytes in flight.
        plan: The plan of the request's form.
        data: The request's tensor data.
        labels: Class of each row, if the model is conditional.
        call: The per-call context.
        tail: The end of the serialised reply, in place of identity and timing.
    """

    __slots__ = ("_admission", "_call", "_data", "_labels", "_plan", "_since", "_tail")

    def __init__(
        self,
        admission: Admission,
        plan: Plan,
        data: bytes,
        labels: Labels,
        call: Call,
        tail: bytes | None,
    ):
        self._admission = admission
        self._plan = plan
        self._data = data
        self._labels = labels
        self._call = call
        self._tail = tail

    def __await__(self) -> Generator[Any, None, Chunks]:
        future: asyncio.Future[Arrays] = asyncio.get_running_loop().create_future()
        entry = self.start(partial(settle, future))
        try:
            outputs = yield from future
        except InvalidArgument as error:
            error.rename(*self._plan.renamed)
            raise
        finally:
            entry.cancel()  # of no effect if it has ended
            self._leave()
        return self._chunks(outputs)

    def start(self, done: Callable[[QueueEntry], None]) -> QueueEntry:
        """Admits the call and enqueues its rows.

        Args:
            done: Called later, once `finish` may be called with the entry.

        Returns:
            The entry. Cancelling it drops the rows.

        Raises:
            Overloaded: There is not enough capacity.
        """
        plan, call = self._plan, self._call
        call.rows += plan.rows
        self._admission.enter(plan.rows, plan.reserved, call.caller)
        self._since = self._admission.now()
        try:
            rows = np.ndarray(plan.shape, plan.dtype, self._data)
            return plan.compute(call, rows, self._labels, done)
        except BaseException:
            self._leave()
            raise

    def finish(self, entry: QueueEntry) -> Chunks:
        """Returns the serialised reply, once the entry has ended.

        Raises:
            CancelledError: The entry was cancelled.
            Exception: The rows could not be computed.
        """
        self._leave()
        try:
            outputs = entry.outcome()
        except InvalidArgument as error:
            error.rename(*self._plan.renamed)
            raise
        return self._chunks(outputs)

    def _leave(self) -> None:
        plan = self._plan
        self._admission.leave(plan.rows, plan.reserved, self._since, self._call.caller)

    def _chunks(self, outputs: Arrays) -> Chunks:
        plan = self._plan
        chunks: list[bytes | memoryview] = []
        for name, head, copied in plan.outputs:
            array = outputs[name]
            chunks += head, array.tobytes() if copied else array.data.cast("B")
        tail = self._tail
        chunks.append(plan.identity + _timing(plan.timing, self._call) if tail is None else tail)
        return tuple(chunks)


def _timing(tag: int, call: Call) -> bytes:
    """Serialises the timing under a one-byte tag, with the same values as `Servicer`."""
    timing = call.timing
    one, two, three, four = _TIMING_TAGS
    total = time.monotonic() - call.arrived
    rows = varint(timing.batch_rows)
    size = _TIMING_BYTES + len(rows)
    return (
        _TIMING.pack(tag, size, one, timing.queue, two, timing.compute, three, total, four) + rows
    )
