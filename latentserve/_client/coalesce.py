"""Joins small calls that run at the same time into one.

A call that finds none of its kind on its way goes at once, together with those of the same
turn of the loop; those that come meanwhile go together when it is answered.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from itertools import accumulate, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve.errors import InvalidArgument, ProtocolError

#: A call of more rows than this is worth a message of its own; no joined one has more.
MOST_ROWS = 256

Run = Callable[[Any, NDArray[Any]], Awaitable[Any]]

# Rows and the future of their result. A plain tuple: one is made for each call.
_Caller = tuple[NDArray[Any], asyncio.Future[Any]]


class _Line:
    """Those who wait for the next message of a kind."""

    __slots__ = ("loop", "waiting")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        # Asked for once: asking costs a system call (Python 3.11).
        self.loop = loop
        self.waiting: list[_Caller] = []


class Coalescer:
    """Sends calls, those of a kind together; to be used in one event loop.

    Args:
        run: Makes the call of a kind for any rows.
    """

    def __init__(self, run: Run):
        self._run = run
        self._lines: dict[Hashable, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, kind: Hashable, rows: NDArray[Any]) -> Awaitable[Any]:
        """Runs a call, alone or with others of its kind.

        A caller who is cancelled takes nothing away from the others, and one whose rows
        are refused does not spoil theirs.

        Args:
            kind: What calls must have in common to be joined.
            rows: The caller's.

        Returns:
            What the kind's call would have returned for these rows.
        """
        if len(rows) > MOST_ROWS:
            return self._run(kind, rows)
        line = self._lines.get(kind) or self._begin(kind)
        result = line.loop.create_future()
        line.waiting.append((rows, result))
        return result

    def _begin(self, kind: Hashable) -> _Line:
        """Starts to send calls of a kind, after all else that this turn of the loop has to do."""
        loop = asyncio.get_running_loop()
        line = self._lines[kind] = _Line(loop)
        task = loop.create_task(self._send(kind, line))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return line

    async def _send(self, kind: Hashable, line: _Line) -> None:
        """Sends one message after the other, until nobody waits."""
        callers: list[_Caller] = []
        try:
            while callers := _take(line):
                await _answer(self._run, kind, callers)
                # Those who have their answers now may call again, and go along.
                await asyncio.sleep(0)
        finally:
            del self._lines[kind]
            # Nobody is left, unless the loop itself is ending.
            for _, result in (*callers, *line.waiting):
                result.cancel()


def _take(line: _Line) -> list[_Caller]:
    """As many of those who still wait as go into one message."""
    waiting, line.waiting = line.waiting, []
    taken: list[_Caller] = []
    count = 0
    for place, caller in enumerate(waiting):
        rows, result = caller
        if result.done():
            continue
        count += len(rows)
        if count > MOST_ROWS:
            line.waiting = waiting[place:]
            break
        taken.append(caller)
    return taken


async def _answer(run: Run, kind: Hashable, callers: list[_Caller]) -> None:
    try:
        parts = await _answers(run, kind, [rows for rows, _ in callers])
    except InvalidArgument as error:
        if len(callers) == 1:
            _fail(callers, error)
            return
        # One of them is to blame: each is answered for itself.
        for caller in callers:
            await _answer(run, kind, [caller])
    except Exception as error:  # noqa: BLE001 - it is each caller's
        _fail(callers, error)
    else:
        for (_, result), part in zip(callers, parts, strict=True):
            if not result.done():
                result.set_result(part)


async def _answers(run: Run, kind: Hashable, rows: list[NDArray[Any]]) -> list[Any]:
    """What one call for all rows says of each array of them."""
    if len(rows) == 1:
        return [await run(kind, rows[0])]
    return _parts(await run(kind, np.concatenate(rows)), [len(each) for each in rows])


def _fail(callers: list[_Caller], error: Exception) -> None:
    for _, result in callers:
        if not result.done():
            result.set_exception(error)


def _parts(result: Any, counts: list[int]) -> list[Any]:
    """Cuts an array, a list, or a record of arrays into so many rows each.

    What else a record has is the same in every part.

    Raises:
        ProtocolError: It has more rows, or fewer.
    """
    if isinstance(result, np.ndarray | list):
        return _cut(result, counts)
    # Not by its class's `__init__`: a frozen dataclass sets each field by a call, which
    # takes longer than all else here.
    parts = [object.__new__(type(result)) for _ in counts]
    inside = [vars(part) for part in parts]
    for name, value in vars(result).items():
        each = _cut(value, counts) if isinstance(value, np.ndarray) else repeat(value)
        for values, part in zip(inside, each, strict=False):
            values[name] = part
    return parts


def _cut(rows: Any, counts: list[int]) -> list[Any]:
    """Cuts an array or a list into so many rows each.

    Arrays are copied: a part that is kept must not keep all of them.
    """
    stops = list(accumulate(counts))
    if len(rows) != stops[-1]:
        raise ProtocolError(f"reply: got {len(rows)} rows, wanted {stops[-1]}")
    if isinstance(rows, list):
        return [rows[stop - count : stop] for count, stop in zip(counts, stops, strict=True)]
    # One row each, as it mostly is, are had without a slice for each.
    parts = rows[:, None] if len(counts) == len(rows) else np.split(rows, stops[:-1])
    return [part.copy() for part in parts]
