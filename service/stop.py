"""The stages of a server's stop (lame duck, drain, exit), and the time that they may take.

Every time limit on a stop is derived from the sum of the three.
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
# Added for the supervisor, which exits only after it has killed workers that hang.
_MARGIN_SECONDS = 1.0
# Time to log that a process is ended.
_REPORT_SECONDS = 0.2


class Stop:
    """Progress of one server's stop.

    Attributes:
        begun: Set by the first signal: the lame duck begins. Health is NOT_SERVING; calls are
            accepted.
        draining: Set once the lame duck is over or has been skipped.
        forced: Set once the drain is to be cut short.
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
        """Skips the lame duck and cuts the drain short."""
        self.drain()
        self.forced.set()


def stop_seconds(lame_duck: float, drain: float) -> float:
    """Maximum seconds from a signal until a server has exited, or a hanging worker is killed.

    Args:
        lame_duck: Seconds of the lame duck.
        drain: Seconds that calls in flight may take.
    """
    return lame_duck + drain + EXIT_SECONDS


def grace_seconds(lame_duck: float, drain: float) -> int:
    """Seconds that a service manager has to wait between SIGTERM and SIGKILL.

    The value for `stop_grace_period` of Compose, `terminationGracePeriodSeconds` of Kubernetes and
    `TimeoutStopSec` of systemd.

    Args:
        lame_duck: Seconds of the lame duck.
        drain: Seconds that calls in flight may take.
    """
    return math.ceil(stop_seconds(lame_duck, drain) + _MARGIN_SECONDS)


def exit_after(seconds: float) -> None:
    """Ends this process with status 1 after `seconds`, unless it has ended by then.

    Waits in a thread of its own, since the event loop may hang, or a thread that runs a graph,
    which Python waits for at exit.
    """

    def wait_and_exit() -> None:
        time.sleep(seconds)
        # In a thread of its own: a full pipe that is not read blocks what logs.
        report = threading.Thread(
            target=_log.error,
            args=("still running after %g s: exiting with status 1", seconds),
            daemon=True,
        )
        report.start()
        report.join(_REPORT_SECONDS)
        os._exit(1)

    threading.Thread(target=wait_and_exit, name="stop budget", daemon=True).start()
