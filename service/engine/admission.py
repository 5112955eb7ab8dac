"""Admission control: bounds the rows and bytes in flight over all calls; sheds excess calls."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Generator
from dataclasses import dataclass

from service.engine.callers import CallerLimits
from service.engine.turns import Turns
from service.errors import OverCallerLimit, Overloaded

# Limits of the retry delay suggested to shed callers, in seconds.
_MIN_RETRY, _MAX_RETRY = 0.05, 5.0
# Weight of the latest call in the moving average of residence times.
_WEIGHT = 0.1


class _Done:
    """An awaitable that completes at once: most calls do not wait, and a coroutine costs more."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()


@dataclass(frozen=True, eq=False)
class _Waiter:
    """A patient call that waits for capacity."""

    rows: int
    size: int
    caller: str
    admitted: asyncio.Future[None]


class Admission:
    """Admits calls while there is capacity for their rows and bytes.

    Bytes in flight include those of replies that their callers have not read. A call is always
    admitted while nothing is in flight, since retrying it could never succeed otherwise; the
    limits on a single request are checked earlier. Used from one event loop only.

    Args:
        max_rows: Maximum rows in flight.
        max_bytes: Maximum bytes in flight.
        clock: Monotonic clock in seconds.
        callers: Limits on what a single caller has in flight; None for no such limits.

    Attributes:
        rows: Rows in flight now.
        size: Bytes in flight now.
        now: Returns the time of the monotonic clock, in seconds.
    """

    def __init__(
        self,
        max_rows: int,
        max_bytes: int,
        clock: Callable[[], float] = time.monotonic,
        callers: CallerLimits | None = None,
    ):
        self.rows = 0
        self.size = 0
        self._max_rows = max_rows
        self._max_bytes = max_bytes
        self.now = clock
        # Moving average of how long calls are in flight: the suggested retry delay.
        self._mean_seconds = 0.0
        # Most bytes that any call, refused or waiting, has lacked since `take_shortage`.
        self._shortage = 0
        self._callers = callers
        self._waiters: Turns[_Waiter] = Turns()

    def admitted(
        self, rows: int, size: int, *, patient: bool = False, caller: str = ""
    ) -> "Admitted":
        """Returns an async context manager that holds capacity for a call.

        Args:
            rows: Rows of the call.
            size: Bytes of the call, inputs and outputs.
            patient: Wait for capacity instead of raising Overloaded; first come, first served
                for each caller, while callers take turns.
            caller: Whose call it is.
        """
        return Admitted(self, rows, size, patient, caller)

    def enter(self, rows: int, size: int, caller: str = "") -> None:
        """Takes capacity immediately; `leave` returns it.

        Raises:
            Overloaded: There is not enough capacity, or the caller has too much in flight.
        """
        if self._callers is not None and not self._callers.allows(caller, rows):
            raise OverCallerLimit(self._callers.refusal(caller, rows), self._retry_seconds())
        if not self._fits(rows, size):
            raise self._overloaded(rows, size)
        self._enter(rows, size, caller)

    def enter_or_wait(self, rows: int, size: int, caller: str = "") -> Awaitable[None]:
        """Takes capacity at once if there is enough; else the returned awaitable waits for it."""
        if self._waiters or not self._fits(rows, size) or not self._allows(caller, rows):
            return self._wait(rows, size, caller)
        self._enter(rows, size, caller)
        return _DONE

    def leave(self, rows: int, size: int, since: float, caller: str = "") -> None:
        """Returns capacity.

        Args:
            rows: As given to `enter`.
            size: As given to `enter`.
            since: Time of admission, from `now`.
            caller: As given to `enter`.
        """
        self._mean_seconds += _WEIGHT * (self.now() - since - self._mean_seconds)
        self._leave(rows, size, caller)
        if self._waiters:
            self._admit_soon()

    def hold(self, count: int) -> None:
        """Counts the bytes of a reply that waits to be sent, even above the limit.

        Until now they were counted as part of the reply's call.
        """
        self.size += count

    def release(self, count: int) -> None:
        """Subtracts bytes that `hold` has counted."""
        self.size -= count
        if self._waiters:
            self._admit_soon()

    def has_room(self, count: int) -> bool:
        """Whether a reply of `count` bytes fits; if not, notes the shortage for `take_shortage`."""
        if self.size == 0 or self.size + count <= self._max_bytes:
            return True
        self._lack(count)
        return False

    def take_shortage(self) -> int:
        """Returns and resets the most bytes that any call has lacked since the previous take."""
        if self._waiters:
            self._lack(self._waiters.first().size)
        shortage, self._shortage = self._shortage, 0
        return shortage

    def _lack(self, size: int) -> None:
        self._shortage = max(self._shortage, self.size + size - self._max_bytes)

    def _fits(self, rows: int, size: int) -> bool:
        return (self.rows == 0 or self.rows + rows <= self._max_rows) and (
            self.size == 0 or self.size + size <= self._max_bytes
        )

    def _allows(self, caller: str, rows: int) -> bool:
        return self._callers is None or self._callers.allows(caller, rows)

    def _enter(self, rows: int, size: int, caller: str) -> None:
        self.rows += rows
        self.size += size
        if self._callers is not None:
            self._callers.enter(caller, rows)

    def _leave(self, rows: int, size: int, caller: str) -> None:
        self.rows -= rows
        self.size -= size
        if self._callers is not None:
            self._callers.leave(caller, rows)

    async def _wait(self, rows: int, size: int, caller: str) -> None:
        waiter = _Waiter(rows, size, caller, asyncio.get_running_loop().create_future())
        self._waiters.append(waiter, caller)
        # Calls queued before it may all be blocked by the limits of their own callers.
        self._admit_waiting()
        try:
            await waiter.admitted
        except asyncio.CancelledError:
            if waiter.admitted.done() and not waiter.admitted.cancelled():
                # Admitted and cancelled in the same iteration of the event loop.
                self._leave(rows, size, caller)
            else:
                self._waiters.remove(waiter, caller)
            self._admit_waiting()
            raise

    def _admit_soon(self) -> None:
        # Not at once: bytes freed by a computed call are needed again for its reply.
        asyncio.get_running_loop().call_soon(self._admit_waiting)

    def _admit_waiting(self) -> None:
        skipped = 0
        while skipped < len(self._waiters):
            waiter = self._waiters.first()
            if waiter.admitted.cancelled():
                self._waiters.popleft()
                continue
            if not self._allows(waiter.caller, waiter.rows):
                self._waiters.skip()
                skipped += 1
                continue
            if not self._fits(waiter.rows, waiter.size):
                # Smaller calls behind it must not overtake it, or it might wait for ever.
                return
            self._waiters.popleft()
            self._enter(waiter.rows, waiter.size, waiter.caller)
            waiter.admitted.set_result(None)
            skipped = 0

    def _overloaded(self, rows: int, size: int) -> Overloaded:
        self._lack(size)
        if self.rows and self.rows + rows > self._max_rows:
            what = f"{self.rows} rows are in flight, and with {rows} more there would be more than "
            what += f"{self._max_rows}"
        else:
            what = (
                f"{self.size} bytes are in flight, and with {size} more there would be more than "
            )
            what += f"{self._max_bytes}"
        return Overloaded(what, self._retry_seconds())

    def _retry_seconds(self) -> float:
        return min(_MAX_RETRY, max(_MIN_RETRY, self._mean_seconds))


class Admitted:
    """Async context manager that holds capacity for a call; created by `Admission.admitted`.

    A class, because a context manager made from a generator costs far more.

    Raises:
        Overloaded: On entry, if there is not enough capacity and the call is not patient.
    """

    __slots__ = ("_admission", "_caller", "_patient", "_rows", "_since", "_size")

    def __init__(self, admission: Admission, rows: int, size: int, patient: bool, caller: str):
        self._admission = admission
        self._rows = rows
        self._size = size
        self._patient = patient
        self._caller = caller
        self._since = 0.0

    def __aenter__(self) -> Awaitable[None]:
        if self._patient:
            entered = self._admission.enter_or_wait(self._rows, self._size, self._caller)
            if entered is not _DONE:
                return self._wait(entered)
        else:
            self._admission.enter(self._rows, self._size, self._caller)
        self._since = self._admission.now()
        return _DONE

    def __aexit__(self, *_: object) -> Awaitable[None]:
        self._admission.leave(self._rows, self._size, self._since, self._caller)
        return _DONE

    async def _wait(self, entered: Awaitable[None]) -> None:
        await entered
        self._since = self._admission.now()
