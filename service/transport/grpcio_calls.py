"""Open calls of the grpcio transport, and how the server ends them."""

import asyncio
import time
from typing import Final

from service.errors import NotReady
from service.transport.dispatch import ENDED
from service.transport.status import RpcStatus

# Checks per grace period, and the shortest time between two of them.
_CHECKS: Final = 8
_SHORTEST_SECONDS: Final = 0.05


class OpenCall:
    """A call whose handler is running.

    Attributes:
        began: When the call began, on the clock of `time.monotonic`.
        moved_at: When one of its messages was last received or sent, on the same clock.
    """

    __slots__ = ("_error", "_task", "began", "moved_at")

    def __init__(self, task: asyncio.Task[object]):
        self.began = self.moved_at = time.monotonic()
        self._task = task
        self._error: NotReady | None = None

    def moved(self) -> None:
        """Sets `moved_at`, since a message has been received or sent."""
        self.moved_at = time.monotonic()

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

    def begin(self) -> OpenCall:
        """Adds the call that the current task handles."""
        task = asyncio.current_task()
        assert task is not None
        call = OpenCall(task)
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
            if now - call.began >= self._age and now - call.moved_at >= self._grace:
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
