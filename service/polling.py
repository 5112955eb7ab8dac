"""Looks for new models now and then, for servers that nobody sends SIGHUP."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from contextlib import suppress

from bundle import BundleError

_log = logging.getLogger(__name__)

# Servers that were started together do not ask the store together for ever.
_JITTER = 0.1


async def poll(
    seconds: float,
    stopped: asyncio.Event,
    changed: Callable[[], Awaitable[bool]],
    reload: Callable[[], Awaitable[None]],
    failed: Callable[[], None],
) -> None:
    """Reloads whenever the models have changed, until the server stops.

    A failure changes nothing and is tried again; it is logged when it begins, and when it ends.

    Args:
        seconds: Mean time between two looks.
        stopped: Set when the server stops.
        changed: Returns whether there is anything to reload; raises BundleError if the models
            cannot be listed.
        reload: Reloads the models; a failure is logged, not raised.
        failed: Called at each look that failed.
    """
    failing = False
    while not stopped.is_set():
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds * random.uniform(1 - _JITTER, 1 + _JITTER)):
                await stopped.wait()
                return
        try:
            if await changed():
                await reload()
        except Exception as error:  # noqa: BLE001 - whatever it is, the next look may succeed
            if not failing:
                text = str(error) if isinstance(error, BundleError) else repr(error)
                _log.error("looking for new models failed, nothing changes: %s", text)
            failing = True
            failed()
        else:
            if failing:
                _log.info("looking for new models succeeds again")
            failing = False
