"""Queue of a client's calls to a full server: fewer at a time, first come, first served.

Without the queue, callers whose calls are admitted would make their next calls at once, and keep
out those that are waiting to repeat a refused call, for as long as the server is full.
"""

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

#: Maximum time that a call waits for its turn, in seconds; after that it is sent anyway.
LONGEST_WAIT_SECONDS = 5.0

# Change of the limit after a refusal and after an answer. In balance about one attempt in seven is
# refused, few enough for the retry budget.
_DECREASE = 0.3
_INCREASE = 0.05
# Time without a refusal after which the limit is lifted.
_MEMORY_SECONDS = 10.0


class Turn:
    """Place of a call in the queue.

    Attributes:
        event: Set when it is the call's turn; a `threading.Event` or an `asyncio.Event`.
    """

    __slots__ = ("event",)

    def __init__(self, event: Any):
        self.event = event


class Turns:
    """Limit on a client's attempts in flight while its server refuses calls because it is full.

    There is no limit before the first refusal. Then it adapts to what the server admits: it falls
    with each refusal and rises with each answer, unless a refused call has yet to come back: the
    retry budget is for those first. Ten seconds without a refusal lift it. Threads may share an
    instance.

    Args:
        new_event: Makes the event of a turn.
        limits: Whether attempts are limited; if not, they are only counted.
    """

    def __init__(self, new_event: Callable[[], Any], *, limits: bool):
        self._new_event = new_event
        self._limits = limits
        self._lock = threading.Lock()
        self._in_flight = 0
        self._limit = math.inf
        self._refused_at = 0.0
        self._coming_back = 0
        self._queue: deque[Turn] = deque()

    def enter(self, *, again: bool) -> Turn | None:
        """Begins an attempt, or queues it.

        Args:
            again: Whether the call was refused before; if so, it goes to the front of the queue.

        Returns:
            The turn to wait for; None if the attempt may begin at once.
        """
        with self._lock:
            if not self._queue and self._has_room():
                self._in_flight += 1
                return None
            turn = Turn(self._new_event())
            if again:
                self._queue.appendleft(turn)
            else:
                self._queue.append(turn)
            return turn

    def begin(self, turn: Turn) -> None:
        """Begins an attempt whose wait timed out, unless its turn came at the same moment."""
        with self._lock:
            if turn in self._queue:
                self._queue.remove(turn)
                self._in_flight += 1

    def answered(self, turn: Turn | None) -> None:
        """Ends an attempt that was answered."""
        with self._lock:
            if self._limit != math.inf and not self._coming_back:
                self._limit += _INCREASE
            self._leave(turn)

    def refused(self, turn: Turn | None) -> None:
        """Ends an attempt that a full server refused."""
        with self._lock:
            if self._limits:
                self._refused_at = time.monotonic()
                # Not more than one above what the server seems to have room for.
                self._limit = max(1.0, min(self._limit, self._in_flight + 1) - _DECREASE)
            self._leave(turn)

    @contextlib.contextmanager
    def coming_back(self) -> Iterator[None]:
        """Counts a refused call as one that waits for its delay and the retry budget."""
        with self._lock:
            self._coming_back += 1
        try:
            yield
        finally:
            with self._lock:
                self._coming_back -= 1

    def ended(self, turn: Turn | None) -> None:
        """Ends an attempt that failed in another way, or that is abandoned in the queue."""
        with self._lock:
            self._leave(turn)

    def close(self) -> None:
        """Begins all attempts in the queue, and lifts the limit for good."""
        with self._lock:
            self._limits, self._limit = False, math.inf
            while self._queue:
                self._in_flight += 1
                self._queue.popleft().event.set()

    def _leave(self, turn: Turn | None) -> None:
        """Counts an attempt as ended, and begins those in the queue that there is room for now."""
        if turn is not None and turn in self._queue:
            self._queue.remove(turn)
        else:
            self._in_flight -= 1
        if self._limit == math.inf:
            return
        if time.monotonic() - self._refused_at > _MEMORY_SECONDS:
            self._limit = math.inf
        while self._queue and self._has_room():
            self._in_flight += 1
            self._queue.popleft().event.set()

    def _has_room(self) -> bool:
        return self._in_flight + 1 <= self._limit
