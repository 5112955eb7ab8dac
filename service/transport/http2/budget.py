"""How much of something a peer may do."""

import time
from collections.abc import Callable


class Budget:
    """A token bucket: so many at once, and so many a second in the long run.

    Args:
        burst: Most at once.
        rate: Tokens that come back each second.
        clock: Seconds that only grow.
    """

    __slots__ = ("_burst", "_clock", "_left", "_rate", "_seen")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float] = time.monotonic):
        self._burst = self._left = float(burst)
        self._rate = rate
        self._clock = clock
        self._seen = clock()

    def spend(self) -> bool:
        """Takes one token; False where none is left."""
        if self._left < 1.0:
            now = self._clock()
            self._left = min(self._burst, self._left + (now - self._seen) * self._rate)
            self._seen = now
            if self._left < 1.0:
                return False
        self._left -= 1.0
        return True

    def earn(self, count: int) -> None:
        """Puts tokens back, up to the burst."""
        self._left = min(self._burst, self._left + count)
