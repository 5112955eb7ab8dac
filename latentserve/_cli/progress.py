"""Progress of long-running commands on stderr: a bar on a terminal, else regular lines."""

import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

_REDRAW_SECONDS = 0.1
_LINE_SECONDS = 10.0
_MAX_BAR_COLUMNS = 30
# Used if the width of the terminal cannot be read.
_DEFAULT_COLUMNS = 80


class ProgressBar:
    """Context manager that shows the progress of one command, and clears the bar at exit.

    On a terminal one line is redrawn in place and cut to the width of the terminal; the bar
    takes the columns that the text leaves free. Elsewhere (a pipe, a log file) the share and
    the text are printed as a line every ten seconds.

    Args:
        stream: Stream to write to; stderr by default.
        clock: Monotonic time in seconds.

    Attributes:
        on_terminal: Whether `stream` is a terminal.
    """

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        self._stream = stream or sys.stderr
        self._clock = clock
        self.on_terminal = self._stream.isatty()
        self._interval = _REDRAW_SECONDS if self.on_terminal else _LINE_SECONDS
        self._shown_at = clock()
        self._stage = ""
        self._stage_began_at = 0.0
        self._stage_began_with = 0
        self._latest = (0.0, "")
        self._drawn_columns = 0

    def __enter__(self) -> "ProgressBar":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.clear()

    def count(self, stage: str, done: int, total: int, unit: str = "rows") -> None:
        """Shows how many units are done, the rate, and the time left.

        Args:
            stage: Name of the work. The rate is measured from the first call with this name,
                so the units that a resumed job did earlier do not count.
            done: Units done.
            total: Number of all units, at least 1.
            unit: Name of the units, in the plural.
        """
        now = self._clock()
        if stage != self._stage:
            # Nothing is shown for a stage that ends within one interval.
            self._stage, self._stage_began_at, self._stage_began_with = stage, now, done
            self._shown_at = now
        elapsed = now - self._stage_began_at
        rate = (done - self._stage_began_with) / elapsed if elapsed > 0 else 0.0
        left = f", {duration((total - done) / rate)} left" if rate > 0 else ""
        text = f"{stage}: {done:,} of {total:,} {unit}, {rate:,.0f} {unit}/s{left}"
        self.show(done / total, text)

    def show(self, share: float, text: str) -> None:
        """Shows the progress, unless it was shown less than one interval ago.

        Args:
            share: Share of the work that is done, 0 to 1.
            text: Description of the progress, one line.
        """
        self._latest = (share, text)
        now = self._clock()
        # A bar must end at 100 %, since it may stay on the screen during other work.
        completes_bar = share >= 1 and self._drawn_columns > 0
        if now - self._shown_at < self._interval and not completes_bar:
            return
        self._shown_at = now
        if self.on_terminal:
            self._draw()
        else:
            print(f"{share:4.0%} {text}", file=self._stream, flush=True)

    def line(self, text: str) -> None:
        """Leaves the bar on the screen and prints a line below it; the next bar follows below."""
        self.leave()
        print(text, file=self._stream, flush=True)

    def leave(self) -> None:
        """Leaves the bar on the screen in its latest state, and begins a new line."""
        if self._drawn_columns:
            self._draw()
            print(file=self._stream, flush=True)
            self._drawn_columns = 0

    def clear(self) -> None:
        """Removes the bar from the screen."""
        if self._drawn_columns:
            print(f"\r{'':{self._drawn_columns}}", end="\r", file=self._stream, flush=True)
            self._drawn_columns = 0

    def _draw(self) -> None:
        share, text = self._latest
        # The last column stays free: some terminals wrap a line that fills it.
        columns = self._columns() - 1
        room = columns - len(f"{share:4.0%} || {text}")
        size = max(0, min(_MAX_BAR_COLUMNS, room))
        bar = ("#" * round(share * size)).ljust(size)
        line = f"{share:4.0%} |{bar}| {text}"[:columns]
        padded = line.ljust(min(self._drawn_columns, columns))
        print(f"\r{padded}", end="", file=self._stream, flush=True)
        self._drawn_columns = len(line)

    def _columns(self) -> int:
        try:
            # 0 if the size of a pseudo-terminal was never set.
            return os.get_terminal_size(self._stream.fileno()).columns or _DEFAULT_COLUMNS
        except OSError:
            return _DEFAULT_COLUMNS


def duration(seconds: float) -> str:
    """Formats a duration as M:SS, or as H:MM:SS from one hour."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
