"""What a stream of gRPC's threads wants beside it: a queue to feed it, and a watch on it."""

import queue
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

_END = object()


class Outgoing:
    """The requests of a stream, as the iterator that gRPC reads in a thread of its own.

    Args:
        first: What is sent at once.
    """

    def __init__(self, first: Iterable[Any]):
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for each in first:
            self.put(each)

    def __iter__(self) -> "Outgoing":
        return self

    def __next__(self) -> Any:
        request = self._queue.get()
        if request is _END:
            raise StopIteration
        return request

    def put(self, request: Any) -> None:
        """Sends one more."""
        self._queue.put(request)

    def close(self) -> None:
        """Ends it; gRPC's thread with it."""
        self._queue.put(_END)


class Watchdog:
    """Cancels a stream from which no message comes while one is waited for.

    A stream as a whole may take any time, and gRPC has no time limit for one message.

    Args:
        call: The stream.
        seconds: How long a message may take.

    Attributes:
        seconds: The same.
        expired: Whether it has cancelled the stream.
    """

    def __init__(self, call: Any, seconds: float):
        self.seconds = seconds
        self.expired = False
        self._call = call
        self._since: float | None = None
        self._over = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._watch, name="latentserve stream", daemon=True)

    def __enter__(self) -> "Watchdog":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._changed:
            self._over = True
            self._changed.notify()
        self._thread.join()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Entered while a message is waited for."""
        # No lock and no notice: a float is written at once, and the thread looks again.
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def _watch(self) -> None:
        with self._changed:
            while not self._over:
                since = self._since
                left = self.seconds if since is None else since + self.seconds - time.monotonic()
                if left <= 0:
                    self.expired = True
                    self._call.cancel()
                    return
                self._changed.wait(left if since is not None else min(left, 1.0))
