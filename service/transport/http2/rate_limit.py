"""Token-bucket rate limits on frames that are cheaper to send than to process."""

import time
from collections.abc import Callable
from typing import Final

# Overhead frames allowed per useful frame: a peer that reads a response sends PING and
# WINDOW_UPDATE (grpc-go: both, for each DATA frame).
_OVERHEAD_PER_FRAME: Final = 10


class TokenBucket:
    """A rate limit that allows bursts; each event takes one token.

    Args:
        burst: Capacity in tokens; the bucket starts full.
        rate: Tokens added per second.
        clock: Monotonic time in seconds.
    """

    __slots__ = ("_burst", "_clock", "_rate", "_tokens", "_updated")

    def __init__(self, burst: int, rate: float, clock: Callable[[], float] = time.monotonic):
        self._burst = self._tokens = float(burst)
        self._rate = rate
        self._clock = clock
        self._updated = clock()

    def take(self) -> bool:
        """Takes one token; returns False if there is none."""
        if self._tokens < 1.0:
            now = self._clock()
            self._tokens = min(self._burst, self._tokens + (now - self._updated) * self._rate)
            self._updated = now
            if self._tokens < 1.0:
                return False
        self._tokens -= 1.0
        return True

    def add(self, count: int) -> None:
        """Adds tokens, up to the burst."""
        self._tokens = min(self._burst, self._tokens + count)


class FloodLimits:
    """Flood limits of one connection; rates as in nghttp2 since CVE-2023-44487 (rapid reset)."""

    __slots__ = ("_overhead", "_resets", "_useful_frames")

    def __init__(self) -> None:
        self._resets = TokenBucket(1000, 33)
        self._overhead = TokenBucket(1000, 100)
        self._useful_frames = 0

    def allow_reset(self) -> bool:
        """Counts a stream reset by either side; returns False if there are too many."""
        return self._resets.take()

    def allow_overhead(self, useful_frames: int) -> bool:
        """Counts a frame that carries no request; returns False if there are too many.

        Args:
            useful_frames: Number of requests received and DATA frames sent so far; the limit grows
                with it.
        """
        if self._overhead.take():
            return True
        self._overhead.add(_OVERHEAD_PER_FRAME * (useful_frames - self._useful_frames))
        self._useful_frames = useful_frames
        return self._overhead.take()
