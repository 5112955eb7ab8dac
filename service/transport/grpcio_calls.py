"""Open calls of the grpcio transport, and how the server ends them."""

import asyncio
import time
from typing import Final

from service.dispatch.dispatcher import ENDED
from service.dispatch.status import RpcStatus
from service.errors import NotReady

# Checks per grace period, and the shortest time between two of them.
_CHECKS: Final = 8
_SHORTEST_SECONDS: Final = 0.05


class OpenCall:
    """A call whose handler is running.

    Args:
        task: Task of the handler.
        idle: Whether the call needs its caller even while nothing is read or written, as a health
            watch does; if not, it is being computed then.
        has_deadline: Whether the call ends without its caller.

    Attributes:
        began: When the call began, on the clock of `time.monotonic`.
        moved_at: When one of its messages was last received or sent, on the same clock.
        unanswered: Requests that have been received and not been answered.
        writes: Whether a reply waits for the caller to read.
    """

    __slots__ = (
        "_error",
        "_has_deadline",
        "_idle",
        "_task",
        "began",
        "moved_at",
        "unanswered",
        "writes",
    )

    def __init__(self, task: asyncio.Task[object], *, idle: bool, has_deadline: bool):
        self.began = self.moved_at = time.monotonic()
        self.unanswered = 0
        self.writes = False
        self._idle = idle
        self._has_deadline = has_deadline
        self._task = task
        self._error: NotReady | None = None

    def moved(self) -> None:
        """Sets `moved_at`, since a message has been received or sent."""
        self.moved_at = time.monotonic()

    @property
    def needs_caller(self) -> bool:
        """Whether the call may last for ever unless its caller acts."""
        if self._has_deadline:
            return False
        return self.writes or (self._idle and self.unanswered <= 0)

    def end(self, error: NotReady) -> None:
        """Cancels the handler, which then ends the call with the status from `failure`."""
        if self._error is None:
            self._error = error
            self._task.cancel(ENDED)

    def failure(self) -> RpcStatus:
        """Status of a call whose handler was cancelled.

        Raises:
            CancelledError: The caller, not the server, has ended the call.
        """
        if self._error is None:
            raise asyncio.CancelledError
        self._task.uncancel()
        return RpcStatus.of(self._error)


class OpenCalls:
    """Table of the open calls.

    grpcio does not expose connections, so the age of a call stands in for that of its connection,
    which is at least as old.

    Args:
        age: Maximum age of a connection in seconds.
        grace: Seconds without a message after which a call beyond that age is ended.
    """

    def __init__(self, age: float, grace: float):
        self._age = age
        self._grace = grace
        self._calls: set[OpenCall] = set()
        self._timer: asyncio.TimerHandle | None = None

    def begin(self, *, idle: bool, has_deadline: bool) -> OpenCall:
        """Adds the call that the current task handles; the arguments are those of `OpenCall`."""
        task = asyncio.current_task()
        assert task is not None
        call = OpenCall(task, idle=idle, has_deadline=has_deadline)
        self._calls.add(call)
        return call

    def finish(self, call: OpenCall) -> None:
        """Removes a call whose handler has ended."""
        self._calls.discard(call)

    def end_all(self, error: NotReady) -> None:
        """Ends every call."""
        for call in list(self._calls):
            call.end(error)

    def watch(self) -> None:
        """Ends calls that have stalled beyond the maximum age, now and at regular intervals."""
        now = time.monotonic()
        for call in list(self._calls):
            if not call.needs_caller:
                call.moved()
            elif now - call.began >= self._age and now - call.moved_at >= self._grace:
                call.end(
                    NotReady(
                        "the connection has reached its maximum age, and nothing has moved for "
                        f"{self._grace:g} s"
                    )
                )
        self._timer = asyncio.get_running_loop().call_later(
            max(self._grace / _CHECKS, _SHORTEST_SECONDS), self.watch
        )

    def close(self) -> None:
        """Stops watching."""
        if self._timer is not None:
            self._timer.cancel()
