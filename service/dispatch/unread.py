"""Counts the bytes of replies that their callers have not read yet; drops stalled replies."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final, Protocol

# A reply of which nothing has been read for this long is dropped when others need its memory.
STALLED_SECONDS: Final = 5.0
_CHECK_SECONDS: Final = 1.0

#: An unread reply: when its caller last read some of it, on the event loop's clock; its unread
#: bytes; and a function that drops it.
Unread = tuple[float, int, Callable[[], None]]


class Capacity(Protocol):
    """Limit on the bytes in flight, implemented by `service.engine.admission.Admission`."""

    def hold(self, count: int) -> None:
        """Adds bytes of a reply that waits to be sent, even above the limit."""

    def release(self, count: int) -> None:
        """Subtracts bytes that `hold` has added."""

    def has_room(self, count: int) -> bool:
        """Whether `count` more bytes are within the limit; if not, notes the shortage."""

    def take_shortage(self) -> int:
        """Returns and resets the most bytes that any call has lacked since the previous take."""


class UnreadReplies:
    """Counts replies that wait to be sent towards the limit on bytes in flight.

    A caller that does not read its replies thus uses up capacity instead of unbounded memory.
    While calls lack memory, the replies that have been stalled longest are dropped, so that such
    callers cannot shut others out.

    Args:
        capacity: Limit that the replies count towards.
        unread: Returns the replies that wait to be read; called about once a second as long as
            there are any.
    """

    def __init__(self, capacity: Capacity, unread: Callable[[], Iterable[Unread]]):
        self.has_room = capacity.has_room
        self._capacity = capacity
        self._unread = unread
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, count: int) -> None:
        """Adds bytes that wait to be sent."""
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
