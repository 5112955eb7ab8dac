"""Ctrl-C that ends a command between two steps of its work, not within one."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any


def exit_at_once(number: int, _frame: FrameType | None) -> None:
    """Signal handler of a process that has nothing to finish: ends it without a traceback."""
    os._exit(128 + number)


# Handlers that `Interrupt` replaces; any other one was installed by an embedding program.
_REPLACED = (signal.SIG_DFL, signal.default_int_handler, exit_at_once)


class Interrupt:
    """Context manager that defers KeyboardInterrupt to the end of a step.

    The handled signals raise KeyboardInterrupt at once, except in a `held` block: there the first
    signal is deferred until the command calls `check`, and a second signal raises at once.

    Python's own handler raises wherever the main thread happens to be. In a finaliser, the
    exception is lost; just after gRPC has acquired a lock, the lock is never released.

    A signal is left alone if it is ignored or already has a handler, as in a program that embeds
    the command. All signals are left alone outside the main thread and, if `patience` is given,
    on systems without interval timers (Windows).

    Args:
        signals: Signals to handle; SIGINT by default.
        patience: Maximum time in seconds for which a signal is deferred, for steps that may
            block on a silent server; None for no limit.
    """

    def __init__(self, *signals: signal.Signals, patience: float | None = None):
        self._signals = signals or (signal.SIGINT,)
        self._patience = patience
        self._previous: dict[signal.Signals, Any] = {}
        self._holding = self._deferred = self._has_timer = False

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._patience is not None and not hasattr(signal, "setitimer"):
            return self
        for number in self._signals:
            if signal.getsignal(number) in _REPLACED:
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
        """Defers the first signal; yields a function that returns whether a signal is deferred."""
        self._holding = True
        try:
            yield lambda: self._deferred
        finally:
            self._holding = False

    def check(self) -> None:
        """Marks the end of a step, and raises if a signal was deferred.

        Raises:
            KeyboardInterrupt: A signal was deferred.
        """
        if self._deferred:
            self._stop_timer()
            raise KeyboardInterrupt

    def _handle(self, _number: int, _frame: FrameType | None) -> None:
        if self._deferred or not self._holding:
            raise KeyboardInterrupt
        self._deferred = True
        if self._patience is not None:
            signal.setitimer(signal.ITIMER_REAL, self._patience)

    def _stop_timer(self) -> None:
        if self._has_timer:
            signal.setitimer(signal.ITIMER_REAL, 0)
