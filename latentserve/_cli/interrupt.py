"""Ctrl-C that ends a command between two steps of its work."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


class Interrupt:
    """Signal handlers that end a command, but not in the middle of a step.

    As a context manager it turns its signals into KeyboardInterrupt: at once, or, within
    `held`, when the command asks for it between two steps. Held back is only the first
    signal, a second one raises at once.

    Python by itself raises KeyboardInterrupt wherever the main thread is. In a finaliser it is
    lost, and raised right after gRPC has acquired a lock it leaves that lock held for ever.

    Nothing is changed for signals that are ignored or that already have a handler (as in a
    program that embeds the command), in another than the main thread, and, where `patience`
    is given, on systems without timers (Windows).

    Args:
        signals: Signals to handle; SIGINT by default.
        patience: Seconds for which a signal is held back at most, for steps that may block
            on a silent server; None for as long as the step takes.
    """

    def __init__(self, *signals: signal.Signals, patience: float | None = None):
        self._signals = signals or (signal.SIGINT,)
        self._patience = patience
        self._previous: dict[signal.Signals, Any] = {}
        self._holding = self._asked = self._has_timer = False

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._patience is not None and not hasattr(signal, "setitimer"):
            return self
        for number in self._signals:
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                self._previous[number] = signal.signal(number, self._handle)
        if self._previous and self._patience is not None:
            alarm = signal.signal(signal.SIGALRM, signal.default_int_handler)
            self._previous[signal.SIGALRM] = alarm
            self._has_timer = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop_timer()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def held(self) -> Iterator[Callable[[], bool]]:
        """Holds the first signal back; yields whether there has been one."""
        self._holding = True
        try:
            yield lambda: self._asked
        finally:
            self._holding = False

    def check(self) -> None:
        """Marks the end of a step.

        Raises:
            KeyboardInterrupt: A signal was held back.
        """
        if self._asked:
            self._stop_timer()
            raise KeyboardInterrupt

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._asked or not self._holding:
            raise KeyboardInterrupt
        self._asked = True
        if self._patience is not None:
            signal.setitimer(signal.ITIMER_REAL, self._patience)

    def _stop_timer(self) -> None:
        if self._has_timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
