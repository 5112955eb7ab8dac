"""The bound on what is in flight: rows and bytes, all calls together."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass

from service.errors import Overloaded

_SHORTEST_RETRY, _LONGEST_RETRY = 0.05, 5.0
# Weight of one call in the running mean of how long calls stay.
_WEIGHT = 0.1


class _Done:
    """Awaited without a coroutine, which most calls would make for nothing."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()


@dataclass(frozen=True)
class _Waiter:
    rows: int
    size: int
    entered: asyncio.Future[None]


class Admission:
    """Lets calls in while there is room, and knows how many rows and bytes are in.

    A call that finds nothing in flight is let in however large it is: alone it can
    only be refused for good, and its own limits are checked before. To be used in
    one event loop.

    Args:
        max_rows: Most rows in flight.
        max_bytes: Most bytes in flight.
        clock: Seconds that only grow.

    Attributes:
        rows: In flight now.
        size: Bytes in flight now.
        now: The clock.
    """

    def __init__(self, max_rows: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.rows = 0
        self.size = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.now = clock
        self._stay = 0.0
        self._waiters: deque[_Waiter] = deque()

    def admitted(self, rows: int, size: int, *, patient: bool = False) -> "Admitted":
        """Returns what is entered while rows are in flight.

        Args:
            rows: How many.
            size: Their bytes, coming in and going out.
            patient: Wait for room, in the order of coming, and do not raise.
        """
        return Admitted(self, rows, size, patient)

    def enter(self, rows: int, size: int) -> None:
        """Lets rows in at once; `leave` lets them out.

        Raises:
            Overloaded: There is no room.
        """
        if not self._fits(rows, size):
            raise self._overloaded(rows, size)
        self._enter(rows, size)

    def enter_patiently(self, rows: int, size: int) -> Awaitable[None]:
        """Lets rows in: at once where there is room, else once it is awaited."""
        if self._waiters or not self._fits(rows, size):
            return self._wait(rows, size)
        self._enter(rows, size)
        return _DONE

    def leave(self, rows: int, size: int, since: float) -> None:
        """Lets them out again."""
        self._stay += _WEIGHT * (self.now() - since - self._stay)
        self.rows -= rows
        self.size -= size
        if self._waiters:
            self._let_in()

    def _fits(self, rows: int, size: int) -> bool:
        if self.rows == 0:
            return True
        return self.rows + rows <= self._max_rows and self.size + size <= self._max_bytes

    def _enter(self, rows: int, size: int) -> None:
        self.rows += rows
        self.size += size

    async def _wait(self, rows: int, size: int) -> None:
        waiter = _Waiter(rows, size, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter)
        try:
            await waiter.entered
        except asyncio.CancelledError:
            if waiter.entered.done() and not waiter.entered.cancelled():
                # Let in and cancelled in the same turn of the loop.
                self.rows -= rows
                self.size -= size
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            self._let_in()
            raise

    def _let_in(self) -> None:
        while self._waiters and self._fits(self._waiters[0].rows, self._waiters[0].size):
            waiter = self._waiters.popleft()
            if waiter.entered.cancelled():
                continue
            self._enter(waiter.rows, waiter.size)
            waiter.entered.set_result(None)

    def _overloaded(self, rows: int, size: int) -> Overloaded:
        if self.rows + rows > self._max_rows:
            what = f"{self.rows} rows are in flight, and with {rows} more there were more than "
            what += f"{self._max_rows}"
        else:
            what = f"{self.size} bytes are in flight, and with {size} more there were more than "
            what += f"{self._max_bytes}"
        return Overloaded(what, min(_LONGEST_RETRY, max(_SHORTEST_RETRY, self._stay)))


class Admitted:
    """Entered while rows are in flight; a class, since contextlib's generators cost far more.

    Raises:
        Overloaded: On entering: there is no room.
    """

    __slots__ = ("_admission", "_patient", "_rows", "_since", "_size")

    def __init__(self, admission: Admission, rows: int, size: int, patient: bool):
        self._admission = admission
        self._rows = rows
        self._size = size
        self._patient = patient
        self._since = 0.0

    def __aenter__(self) -> Awaitable[None]:
        if self._patient:
            entered = self._admission.enter_patiently(self._rows, self._size)
            if entered is not _DONE:
                return self._waited(entered)
        else:
            self._admission.enter(self._rows, self._size)
        self._since = self._admission.now()
        return _DONE

    def __aexit__(self, *_: object) -> Awaitable[None]:
        self._admission.leave(self._rows, self._size, self._since)
        return _DONE

    async def _waited(self, entered: Awaitable[None]) -> None:
        await entered
        self._since = self._admission.now()
