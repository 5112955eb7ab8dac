"""Replies that wait for their callers to read them, and the memory that they take."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

# A reply that has not moved for that long is dropped when others need its memory.
STALLED_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 1.0

#: A reply: when its caller last took some of it, on the event loop's clock; its bytes; and what
#: drops it.
Unread = tuple[float, int, Callable[[], None]]


class Capacity(Protocol):
    """Memory for calls in flight, as `service.engine.admission.Admission` bounds it."""

    def hold(self, count: int) -> None:
        """Takes bytes, whether or not there is capacity."""

    def release(self, count: int) -> None:
        """Returns bytes."""

    def has_room(self, count: int) -> bool:
        """Whether bytes can be taken within the limit."""

    def take_shortage(self) -> int:
        """Most bytes that a call has lacked since this was last called."""


class UnreadReplies:
    """Counts replies that wait to be sent as memory of calls in flight.

    A caller that does not read its replies thus uses up capacity instead of unbounded memory.
    While calls are refused for want of memory, the replies that have been stalled longest are
    dropped, so that such callers cannot shut others out.

    Args:
        capacity: Memory that the replies are counted in.
        unread: Returns the replies that wait at the moment; called about once a second as long as
            there are any.
    """

    def __init__(self, capacity: Capacity, unread: Callable[[], Iterable[Unread]]):
        self.has_room = capacity.has_room
        self._capacity = capacity
        self._unread = unread
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, count: int) -> None:
        """Counts bytes that wait to be sent."""
        self._held += count
        self._capacity.hold(count)
        if self._timer is None:
            self._start_timer()

    def release(self, count: int) -> None:
        """Subtracts bytes that were sent or dropped."""
        self._held -= count
        self._capacity.release(count)

    def close(self) -> None:
        """Stops the checks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(_CHECK_SECONDS, self._check)

    def _check(self) -> None:
        """Drops stalled replies, the longest stalled first, until no call lacks memory."""
        self._timer = None
        if not self._held:
            return
        self._start_timer()
        before = asyncio.get_running_loop().time() - STALLED_SECONDS
        stalled = [reply for reply in self._unread() if reply[0] <= before]
        lacking = self._capacity.take_shortage()
        if lacking <= 0:
            return
        for _, count, drop in sorted(stalled, key=lambda reply: reply[0]):
            drop()
            lacking -= count
            if lacking <= 0:
                return
