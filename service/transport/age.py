"""Maximum age of connections; beyond it, calls that stall are ended."""

import asyncio
import random
from collections.abc import Callable, Iterable
from typing import Final

from service.transport.http2.connection import Connection
from service.transport.http2.stream import Stream

# Relative jitter of the age: connections opened together are not shut down together.
_JITTER: Final = 0.1
# Checks per grace period, and the shortest time between two of them.
_CHECKS: Final = 8
_SHORTEST_SECONDS: Final = 0.05

# By stream identifier: bytes moved so far, and since when the call has stalled, on the event
# loop's clock.
_Marks = dict[int, tuple[int, float]]


class Ages:
    """Shuts connections down at their maximum age.

    Calls in flight continue while they are computed, and as long as they send or receive bytes.
    Calls that stall are ended: without a deadline, such a call would keep its connection open for
    ever.

    Args:
        age: Maximum age of a connection in seconds.
        grace: Seconds after which a stalled call on a connection beyond its age is ended.
        needs_caller: Whether the call of a stream may last for ever unless its caller acts.
        end: Called with the stream of each call that has to be ended.
    """

    def __init__(
        self,
        age: float,
        grace: float,
        needs_caller: Callable[[Stream], bool],
        end: Callable[[Stream], None],
    ):
        self._age = age
        self._grace = grace
        self._needs_caller = needs_caller
        self._end = end
        self._timers: dict[Connection, asyncio.TimerHandle] = {}

    def add(self, connection: Connection) -> None:
        """Starts the timer of a new connection."""
        age = self._age * random.uniform(1 - _JITTER, 1 + _JITTER)
        self._timers[connection] = asyncio.get_running_loop().call_later(
            age, self._retire, connection
        )

    def remove(self, connection: Connection) -> None:
        """Cancels the timer of a connection that is closed."""
        timer = self._timers.pop(connection, None)
        if timer is not None:
            timer.cancel()

    def _retire(self, connection: Connection) -> None:
        connection.shut_down()
        self._check(connection, {})

    def _check(self, connection: Connection, marks: _Marks) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        marks = self._marked(connection.streams, marks, now)
        for stream in connection.streams:
            if now - marks[stream.id][1] >= self._grace and self._needs_caller(stream):
                self._end(stream)
        self._timers[connection] = loop.call_later(
            max(self._grace / _CHECKS, _SHORTEST_SECONDS), self._check, connection, marks
        )

    def _marked(self, streams: Iterable[Stream], before: _Marks, now: float) -> _Marks:
        """Returns the marks of `streams` at time `now`, given the marks `before`."""
        marks = {}
        for stream in streams:
            moved, since = before.get(stream.id, (-1, now))
            if moved != stream.moved_bytes or not self._needs_caller(stream):
                since = now
            marks[stream.id] = stream.moved_bytes, since
        return marks
