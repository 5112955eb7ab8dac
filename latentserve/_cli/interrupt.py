"""Ctrl-C that ends a command between two steps of it."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Final

# How long a step may take before it is broken off after all; a server may be silent.
_PATIENCE_SECONDS: Final = 2.0


class Interrupt:
    """Holds SIGINT back until `check`, or for two seconds; a second one is not held back.

    Python raises KeyboardInterrupt wherever the main thread is. In a finaliser it is lost,
    and where a lock of gRPC's has just been taken that is never given back.

    Where SIGINT has another handler than Python's, in another thread than the main one, and
    where there is no timer (Windows), nothing is changed.
    """

    def __init__(self) -> None:
        self._asked = False
        self._holds = False
        self._alarm: Any = signal.SIG_DFL

    def __enter__(self) -> "Interrupt":
        if (
            signal.getsignal(signal.SIGINT) is signal.default_int_handler
            and threading.current_thread() is threading.main_thread()
            and hasattr(signal, "setitimer")
        ):
            self._alarm = signal.signal(signal.SIGALRM, signal.default_int_handler)
            signal.signal(signal.SIGINT, self._hold_back)
            self._holds = True
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, self._alarm)

    def check(self) -> None:
        """Called where a command may end.

        Raises:
            KeyboardInterrupt: It was asked to.
        """
        if self._asked:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise KeyboardInterrupt

    def _hold_back(self, number: int, frame: FrameType | None) -> None:
        if self._asked:
            signal.default_int_handler(number, frame)
        self._asked = True
        signal.setitimer(signal.ITIMER_REAL, _PATIENCE_SECONDS)
