"""Admission control: bounds the rows and bytes in flight, over all calls, and sheds the rest."""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass

from service.errors import Overloaded

_SHORTEST_RETRY, _LONGEST_RETRY = 0.05, 5.0
# Weight of the latest call in the moving average of residence times.
_WEIGHT = 0.1


class _Done:
    """An awaitable that is done already; cheaper than a coroutine, and most calls need none."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()


@dataclass(frozen=True)
class _Waiter:
    """A patient call that waits for capacity."""

    rows: int
    size: int
    admitted: asyncio.Future[None]


class Admission:
    """Admits calls while there is capacity for their rows and bytes.

    A call is always admitted while nothing is in flight: shed, it would never succeed, and the
    limits of a single request are checked before. To be used in one event loop.

    Args:
        max_rows: Most rows in flight.
        max_bytes: Most bytes in flight.
        clock: Monotonic clock in seconds.

    Attributes:
        rows: Rows in flight now.
        size: Bytes in flight now.
        now: The clock.
    """

    def __init__(self, max_rows: int, max_bytes: int, clock: Callable[[], float] = time.monotonic):
        self.rows = 0
        self.size = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.now = clock
        # Moving average of how long a call is in flight: when it pays to retry.
        self._mean_seconds = 0.0
        self._waiters: deque[_Waiter] = deque()

    def admitted(self, rows: int, size: int, *, patient: bool = False) -> "Admitted":
        """Returns an async context manager that holds capacity for a call.

        Args:
            rows: Rows of the call.
            size: Bytes of the call, inputs and outputs.
            patient: Wait for capacity, first come, first served, instead of raising
                Overloaded.
        """
        return Admitted(self, rows, size, patient)

    def enter(self, rows: int, size: int) -> None:
        """Takes capacity at once; `leave` returns it.

        Raises:
            Overloaded: There is not enough capacity.
        """
        if not self._fits(rows, size):
            raise self._overloaded(rows, size)
        self._enter(rows, size)

    def enter_or_wait(self, rows: int, size: int) -> Awaitable[None]:
        """Takes capacity, at once if there is enough, else when the result is awaited."""
        if self._waiters or not self._fits(rows, size):
            return self._wait(rows, size)
        self._enter(rows, size)
        return _DONE

    def leave(self, rows: int, size: int, since: float) -> None:
        """Returns capacity.

        Args:
            rows: As given to `enter`.
            size: As given to `enter`.
            since: When the call was admitted, by the clock.
        """
        self._mean_seconds += _WEIGHT * (self.now() - since - self._mean_seconds)
        self.rows -= rows
        self.size -= size
        if self._waiters:
            self._admit_waiting()

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
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                # Admitted and cancelled in the same iteration of the event loop.
                self.rows -= rows
                self.size -= size
            elif waiter in self._waiters:
                self._waiters.remove(waiter)
            self._admit_waiting()
            raise

    def _admit_waiting(self) -> None:
        while self._waiters and self._fits(self._waiters[0].rows, self._waiters[0].size):
            waiter = self._waiters.popleft()
            if waiter.admitted.cancelled():
                continue
            self._enter(waiter.rows, waiter.size)
            waiter.admitted.set_result(None)

    def _overloaded(self, rows: int, size: int) -> Overloaded:
        if self.rows + rows > self._max_rows:
            what = f"{self.rows} rows are in flight, and with {rows} more there were more than "
            what += f"{self._max_rows}"
        else:
            what = f"{self.size} bytes are in flight, and with {size} more there were more than "
            what += f"{self._max_bytes}"
        return Overloaded(what, min(_LONGEST_RETRY, max(_SHORTEST_RETRY, self._mean_seconds)))


class Admitted:
    """Holds capacity for a call while it is entered; made by `Admission.admitted`.

    A class, since a context manager made from a generator costs far more.

    Raises:
        Overloaded: On entering, without enough capacity, if the call is not patient.
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
            entered = self._admission.enter_or_wait(self._rows, self._size)
            if entered is not _DONE:
                return self._wait(entered)
        else:
            self._admission.enter(self._rows, self._size)
        self._since = self._admission.now()
        return _DONE

    def __aexit__(self, *_: object) -> Awaitable[None]:
        self._admission.leave(self._rows, self._size, self._since)
        return _DONE

    async def _wait(self, entered: Awaitable[None]) -> None:
        await entered
        self._since = self._admission.now()
