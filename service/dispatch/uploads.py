"""Counts the bytes of requests that are not complete yet; ends stalled uploads."""

import asyncio
from collections.abc import Callable, Iterable
from typing import Final

from service.errors import Overloaded

# A request of which almost nothing has arrived for this long is ended when others need its memory.
STALLED_SECONDS: Final = 5.0
# Delay of that, so that many refusals cause one check. Shorter than the retry delay.
_CHECK_SECONDS: Final = 0.1
# Suggested retry delay when too many requests are being received: most are complete by then.
_RETRY_SECONDS: Final = 0.5

#: An unfinished request: when its caller last sent some of it, on the event loop's clock, and a
#: function that ends its call.
Upload = tuple[float, Callable[[], None]]


class Uploads:
    """Limits the bytes of unfinished requests, over all connections.

    Args:
        max_bytes: Limit in bytes.
        unfinished: Returns the requests that still wait for bytes from their callers.
    """

    def __init__(self, max_bytes: int, unfinished: Callable[[], Iterable[Upload]]):
        self._max_bytes = max_bytes
        self._unfinished = unfinished
        self._held = 0
        self._timer: asyncio.TimerHandle | None = None

    def hold(self, change: int, held: int) -> None:
        """Counts the bytes of incomplete requests, and rejects more if the others exceed the limit.

        The request's own bytes do not count against it: a large one must fit into an idle server.

        Args:
            change: Change in the bytes of a request.
            held: Bytes of that request now, the change included.

        Raises:
            Overloaded: The other requests hold more than the limit.
        """
        self._held += change
        others = self._held - held
        if change > 0 and others > self._max_bytes:
            if self._timer is None:
                loop = asyncio.get_running_loop()
                self._timer = loop.call_later(_CHECK_SECONDS, self._check)
            raise Overloaded(
                f"unfinished requests of {others} bytes are being received, wanted at most "
                f"{self._max_bytes} (see max_queue_bytes)",
                _RETRY_SECONDS,
            )

    def close(self) -> None:
        """Stops the checks."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check(self) -> None:
        """Ends stalled uploads, the longest stalled first, until the rest is within the limit."""
        self._timer = None
        before = asyncio.get_running_loop().time() - STALLED_SECONDS
        stalled = [upload for upload in self._unfinished() if upload[0] <= before]
        for _, end in sorted(stalled, key=lambda upload: upload[0]):
            if self._held <= self._max_bytes:
                return
            end()
