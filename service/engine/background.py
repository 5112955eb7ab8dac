"""Threads for blocking work other than graphs; callers take turns."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from service.engine.turns import Turns

T = TypeVar("T")


class Background:
    """Runs blocking work, such as reading picture files, off the event loop.

    An executor alone is first in, first out: the pictures of a caller with many calls would keep
    those of all others waiting. Used from one event loop only.

    Args:
        threads: Number of threads.
    """

    def __init__(self, threads: int):
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="background")
        self._idle = threads
        self._waiting: Turns[asyncio.Future[None]] = Turns()

    async def run(self, work: Callable[[], T], caller: str) -> T:
        """Runs work in a thread and returns its result; callers take turns if no thread is idle.

        Args:
            work: Called in the thread, with a copy of the current context variables.
            caller: `Call.caller` of the call that the work is for.
        """
        if self._idle:
            self._idle -= 1
        else:
            await self._turn(caller)
        loop = asyncio.get_running_loop()
        try:
            running = loop.run_in_executor(self._executor, contextvars.copy_context().run, work)
        except BaseException:
            self._next()
            raise
        running.add_done_callback(self._finished)
        # Work cannot be interrupted: its thread stays busy even if the call is cancelled.
        return await asyncio.shield(running)

    def close(self) -> None:
        """Waits for running work and ends the threads."""
        self._executor.shutdown()

    async def _turn(self, caller: str) -> None:
        turn = asyncio.get_running_loop().create_future()
        self._waiting.append(turn, caller)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._next()
            else:
                self._waiting.remove(turn, caller)
            raise

    def _finished(self, running: "asyncio.Future[T]") -> None:
        if not running.cancelled():
            running.exception()  # or asyncio logs that of work whose call was cancelled
        self._next()

    def _next(self) -> None:
        """Gives the thread that has become idle to the caller whose turn it is."""
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        self._idle += 1
