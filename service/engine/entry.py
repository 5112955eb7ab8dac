"""Requests in the batcher's queue."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from service.engine.call import Call
from service.engine.request import InferenceRequest

# At the deadline, the transport's timer or the caller cancels, mostly before the batcher sees that
# the call is late. Timers are coarse, and the caller's started before: it may be so much earlier.
_EARLY_SECONDS: Final = 0.01


class QueueEntry:
    """A request in the queue, with its progress.

    It is used like a future, in the event loop only. But it calls its callback at once, and only
    one: of a call of one image, a future and the event-loop iteration that it needs take a tenth
    of the time.

    Args:
        request: The request.
        call: The call that it belongs to.
        done: Called with the entry once it has ended: all rows were computed, one of them could
            not be, or it was cancelled.
        clock: The batcher's clock.

    Attributes:
        arrived: When it was enqueued, on that clock.
        ended: Whether it has ended.
        cancelled: Whether it was cancelled.
        late: Whether it was cancelled because the call's deadline had passed.
        on_cancel: Functions to call when it is cancelled.
        scheduled: Rows that have been put into a batch.
        written: Rows whose outputs are in `result`, guarded by `_LOCK`; stays 0 if all rows
            are in one batch.
        completed: Rows in batches that the event loop has marked as completed.
        result: The output arrays, filled batch by batch; replaced by the result of `finish`.
        error: Exception raised for some of its rows; the remaining rows are not computed.
    """

    __slots__ = (
        "_clock",
        "_done",
        "arrived",
        "call",
        "cancelled",
        "completed",
        "ended",
        "error",
        "late",
        "on_cancel",
        "request",
        "result",
        "scheduled",
        "written",
    )

    def __init__(
        self,
        request: InferenceRequest[Any],
        call: Call,
        done: "Callable[[QueueEntry], None]",
        clock: Callable[[], float],
    ):
        self.request = request
        self.call = call
        self._done = done
        self._clock = clock
        self.ended = self.cancelled = self.late = False
        self.on_cancel: tuple[Callable[[], None], ...] = ()
        self.arrived = clock()
        self.scheduled = 0
        self.written = 0
        self.completed = 0
        self.result: Any = None
        self.error: BaseException | None = None

    def end(self, error: BaseException | None = None) -> None:
        """Ends it, with an error or with its result, unless it has ended."""
        if self.ended:
            return
        self.ended = True
        self.error = error
        done, self._done = self._done, _ignore  # breaks a reference cycle
        done(self)

    def cancel(self, msg: Any = None) -> bool:
        """Drops the rows that have not been dispatched, and ends it, unless it has ended."""
        if self.ended:
            return False
        self.cancelled = True
        self.late = self._clock() >= self.call.deadline - _EARLY_SECONDS
        for then in self.on_cancel:
            then()
        self.end(asyncio.CancelledError() if msg is None else asyncio.CancelledError(msg))
        self.release()
        return True

    def release(self) -> None:
        """Drops the inputs of an entry that has ended but waits, unless a batch has rows of it.

        Admission no longer counts them, and its turn, at which it is removed from the queue, may
        be seconds away. They are never read again: no further rows of it are put into a batch.
        """
        request = self.request
        if self.completed == self.scheduled < request.rows:
            # The request itself is its maker's.
            self.request = InferenceRequest(request.operation, request.rows, {}, None, request.size)
            self.result = None

    def outcome(self) -> Any:
        """The result, once it has ended; to be called once.

        Raises:
            CancelledError: It was cancelled.
            Exception: Any exception of the inputs, the graph or `finish`; or DeadlineExceeded.
        """
        error, self.error = self.error, None
        if error is None:
            return self.result
        try:
            raise error
        finally:
            del error  # breaks a reference cycle with its traceback


def _ignore(_entry: QueueEntry) -> None:
    pass


def settle(future: asyncio.Future[Any], entry: QueueEntry) -> None:
    """Completes a future, unless it is done, with the outcome of an entry that has ended."""
    if future.done():
        return
    error, entry.error = entry.error, None  # its traceback refers to the inputs
    if error is None:
        future.set_result(entry.result)
    elif entry.cancelled:
        future.cancel(*error.args)
    else:
        future.set_exception(error)
