"""A progress bar on stderr; a line now and then where that is no terminal."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

_BAR = 24
_REDRAWN_EVERY = 0.1
_LINE_EVERY = 10.0


class ProgressBar:
    """Shows how far a job is, how fast it goes and how long it will take.

    Args:
        stream: Where to show it.
        clock: Seconds.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._clock = clock
        self._terminal = self._stream.isatty()
        self._every = _REDRAWN_EVERY if self._terminal else _LINE_EVERY
        self._what = ""
        self._began = self._shown = 0.0
        self._first = 0
        self._drawn = 0

    def show(self, what: str, done: int, total: int) -> None:
        """Shows progress, where it is time to.

        Args:
            what: What is being done; its rate is counted from its first call.
            done: Rows that are done.
            total: Rows there are.
        """
        now = self._clock()
        if what != self._what:
            # A stage that is over at once is not worth a line.
            self._what, self._began, self._first, self._shown = what, now, done, now
        if now - self._shown < self._every:
            return
        self._shown = now
        rate = (done - self._first) / (now - self._began)
        left = f", {_duration((total - done) / rate)} left" if rate > 0 else ""
        figures = f"{done:,} of {total:,} rows, {rate:,.0f} rows/s{left}"
        if not self._terminal:
            print(f"{what}: {figures}", file=self._stream, flush=True)
            return
        filled = "#" * (_BAR * done // total)
        self._draw(f"{what} [{filled:{_BAR}}] {done / total:4.0%} {figures}")

    def clear(self) -> None:
        """Takes the bar away."""
        if self._drawn:
            self._draw("")
            print(end="\r", file=self._stream, flush=True)
            self._drawn = 0

    def _draw(self, text: str) -> None:
        print(f"\r{text:{self._drawn}}", end="", file=self._stream, flush=True)
        self._drawn = len(text)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
