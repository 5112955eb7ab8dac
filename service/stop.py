"""The stages of a server's stop, and the time that they may take.

Lame duck, drain, exit. Their sum is one number, from which every limit on a stop follows.
"""

import asyncio
import logging
import math
import os
import threading
import time
from typing import Final

_log = logging.getLogger(__name__)

#: Seconds from the end of the drain to the exit of the process: callers read their last replies,
#: and traces are flushed.
EXIT_SECONDS: Final = 6.0
# From the kill of a worker to the exit of its supervisor, and to a look at the clock.
_MARGIN_SECONDS = 1.0


class Stop:
    """How far the stop of one server has come.

    Attributes:
        begun: Set by the first signal: the lame duck begins. Health is NOT_SERVING; calls are
            accepted.
        draining: Set where the lame duck is over, or is skipped.
        forced: Set where the drain is to be cut short.
    """

    def __init__(self) -> None:
        self.begun = asyncio.Event()
        self.draining = asyncio.Event()
        self.forced = asyncio.Event()

    def begin(self) -> None:
        """Begins the lame duck."""
        self.begun.set()

    def drain(self) -> None:
        """Ends the lame duck, or skips it."""
        self.begun.set()
        self.draining.set()

    def force(self) -> None:
        """Cuts all of it short."""
        self.drain()
        self.forced.set()


def stop_seconds(lame_duck: float, drain: float) -> float:
    """Most seconds from a signal to the exit of a server, or to the kill of a worker.

    Args:
        lame_duck: Seconds of the lame duck.
        drain: Seconds that calls in flight may take.
    """
    return lame_duck + drain + EXIT_SECONDS


def grace_seconds(lame_duck: float, drain: float) -> int:
    """Seconds that the program which sends SIGTERM should wait before it sends SIGKILL.

    `stop_grace_period` of Compose, `terminationGracePeriodSeconds` of Kubernetes and
    `TimeoutStopSec` of systemd.

    Args:
        lame_duck: Seconds of the lame duck.
        drain: Seconds that calls in flight may take.
    """
    return math.ceil(stop_seconds(lame_duck, drain) + _MARGIN_SECONDS)


def exit_after(seconds: float) -> None:
    """Ends this process with status 1 after some time, if it has not ended by itself.

    From a thread: the event loop, or a thread of a graph that Python waits for at its exit, may
    be what hangs.
    """

    def wait_and_exit() -> None:
        time.sleep(seconds)
        _log.error("not ended after %g s: exiting all the same", seconds)
        os._exit(1)

    threading.Thread(target=wait_and_exit, name="stop budget", daemon=True).start()
