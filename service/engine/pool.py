"""Threads that compute beside the loop."""

import asyncio
import queue
import threading
from collections.abc import Callable


class Pool:
    """Threads that compute batches.

    Args:
        count: How many.
    """

    def __init__(self, count: int):
        self._queue: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._run, name=f"engine-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def __len__(self) -> int:
        return len(self._threads)

    def __call__(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Computes `work` in a thread and then calls `then` in the running loop."""
        loop = asyncio.get_running_loop()

        def both() -> None:
            work()
            loop.call_soon_threadsafe(then)

        self._queue.put(both)

    def close(self) -> None:
        """Waits for what is being computed, and ends."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
