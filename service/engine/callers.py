"""Limits on what a single caller has in flight."""

from dataclasses import dataclass


@dataclass(slots=True)
class _InFlight:
    """What one caller has in flight."""

    rows: int = 0
    calls: int = 0


class CallerLimits:
    """Counts the rows and calls in flight of each caller, and says whether more are allowed.

    A caller with nothing in flight is always allowed a call. Each message of a stream counts as a
    call while it is being answered.

    Args:
        max_rows: Maximum rows in flight of one caller; 0 for no limit.
        max_calls: Maximum calls in flight of one caller; 0 for no limit.
    """

    def __init__(self, max_rows: int, max_calls: int):
        self._max_rows = max_rows
        self._max_calls = max_calls
        # Callers with nothing in flight are left out.
        self._in_flight: dict[str, _InFlight] = {}

    def allows(self, caller: str, rows: int) -> bool:
        """Whether a further call is within the limits."""
        now = self._in_flight.get(caller)
        return now is None or (
            (not self._max_rows or now.rows + rows <= self._max_rows)
            and (not self._max_calls or now.calls < self._max_calls)
        )

    def refusal(self, caller: str, rows: int) -> str:
        """Returns the error message for a call that `allows` rejects: the limit it exceeds."""
        now = self._in_flight[caller]
        if self._max_rows and now.rows + rows > self._max_rows:
            return (
                f"{now.rows} rows of this caller are in flight, and with {rows} more there would "
                f"be more than {self._max_rows} (see max_rows_per_caller)"
            )
        return (
            f"{now.calls} calls of this caller are in flight, and no more are allowed (see "
            "max_calls_per_caller)"
        )

    def enter(self, caller: str, rows: int) -> None:
        """Counts a call as in flight."""
        now = self._in_flight.get(caller)
        if now is None:
            now = self._in_flight[caller] = _InFlight()
        now.rows += rows
        now.calls += 1

    def leave(self, caller: str, rows: int) -> None:
        """Counts a call as no longer in flight."""
        now = self._in_flight[caller]
        now.rows -= rows
        now.calls -= 1
        if not now.calls:
            del self._in_flight[caller]
