"""Threads that compute batches off the event loop."""

import asyncio
import queue
import threading
from collections.abc import Callable


class Pool:
    """A fixed number of compute threads and the queue that they take work from.

    Args:
        count: Number of threads, which start immediately.
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
        """Runs `work` in a thread, then `then` in the caller's event loop.

        Args:
            work: Must not raise, since that would end the thread.
            then: Scheduled with `call_soon_threadsafe`.
        """
        loop = asyncio.get_running_loop()

        def both() -> None:
            work()
            loop.call_soon_threadsafe(then)

        self._queue.put(both)

    def close(self) -> None:
        """Finishes the work in the queue and joins the threads."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        while (work := self._queue.get()) is not None:
            work()
