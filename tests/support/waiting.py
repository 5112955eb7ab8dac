"""Bounded waits for a condition, in place of fixed sleeps."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
_POLL_SECONDS = 0.02


def wait_until(
    condition: Callable[[], object], log: Callable[[], object] = lambda: "", seconds: float = 30.0
) -> None:
    """Returns once the condition holds.

    Args:
        condition: Called until it returns something true.
        log: Returns the message of the failure.
        seconds: Upper bound of the wait.

    Raises:
        AssertionError: The condition does not hold after `seconds`.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(_POLL_SECONDS)


async def wait_until_async(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Returns once the condition holds, and lets the event loop run meanwhile.

    Args:
        condition: Called until it returns something true.
        seconds: Upper bound of the wait.

    Raises:
        TimeoutError: The condition does not hold after `seconds`.
    """
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.001)


def wait_until_constant(read: Callable[[], T], still: float, seconds: float = 30.0) -> T:
    """Returns a value that has been the same for a while: what changed it has stopped.

    Args:
        read: Returns the value.
        still: Seconds for which it has to stay the same.
        seconds: Upper bound of the wait.

    Raises:
        AssertionError: The value still changes after `seconds`.
    """
    began = since = time.monotonic()
    value = read()
    while (now := time.monotonic()) - since < still:
        assert now - began < seconds, f"still changing: {value}"
        time.sleep(_POLL_SECONDS)
        if (latest := read()) != value:
            value, since = latest, time.monotonic()
    return value
