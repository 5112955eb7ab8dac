"""Joins small calls that run at the same time into one.

A call that finds none of its kind on its way goes at once, together with those of the same
turn of the loop; those that come meanwhile go together when it is answered.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve.errors import InvalidArgument

#: A call of more rows than this is worth a message of its own; no joined one has more.
MOST_ROWS = 256

Run = Callable[[NDArray[Any]], Awaitable[Any]]


@dataclass(eq=False, slots=True)
class _Caller:
    rows: NDArray[Any]
    run: Run
    result: asyncio.Future[Any]


@dataclass(slots=True)
class _Line:
    """Calls of one kind: whether a message is on its way, and who waits for the next."""

    busy: bool = False
    looked_at: bool = False
    waiting: list[_Caller] = field(default_factory=list)


class Coalescer:
    """Sends calls, those of a kind together; to be used in one event loop."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, kind: Hashable, rows: NDArray[Any], run: Run) -> Awaitable[Any]:
        """Runs a call, alone or with others of its kind.

        A caller who is cancelled takes nothing away from the others, and one whose rows
        are refused does not spoil theirs.

        Args:
            kind: What calls must have in common to be joined.
            rows: The caller's.
            run: Makes the call for any rows.

        Returns:
            What `run` would have returned for these rows.
        """
        if len(rows) > MOST_ROWS:
            return run(rows)
        line = self._lines.get(kind)
        if line is None:
            line = self._lines[kind] = _Line()
        loop = asyncio.get_running_loop()
        caller = _Caller(rows, run, loop.create_future())
        line.waiting.append(caller)
        if not line.busy:
            self._look_soon(loop, kind, line)
        return caller.result

    def _look_soon(self, loop: asyncio.AbstractEventLoop, kind: Hashable, line: _Line) -> None:
        """Looks at a line after all else that this turn of the loop has to do."""
        if not line.looked_at:
            line.looked_at = True
            loop.call_soon(self._look, loop, kind, line)

    def _look(self, loop: asyncio.AbstractEventLoop, kind: Hashable, line: _Line) -> None:
        """Sends what waits, if nothing is on its way."""
        line.looked_at = False
        if line.busy:
            return
        callers = _take(line)
        if not callers:
            del self._lines[kind]
            return
        line.busy = True
        task = loop.create_task(self._send(loop, kind, line, callers))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _send(
        self,
        loop: asyncio.AbstractEventLoop,
        kind: Hashable,
        line: _Line,
        callers: list[_Caller],
    ) -> None:
        try:
            await _answer(callers)
        finally:
            line.busy = False
            # Not at once: those who now have their answers may call again.
            self._look_soon(loop, kind, line)


def _take(line: _Line) -> list[_Caller]:
    """As many of those who still wait as go into one message."""
    line.waiting = [caller for caller in line.waiting if not caller.result.done()]
    count = rows = 0
    for caller in line.waiting:
        rows += len(caller.rows)
        if rows > MOST_ROWS:
            break
        count += 1
    taken, line.waiting = line.waiting[:count], line.waiting[count:]
    return taken


async def _answer(callers: list[_Caller]) -> None:
    try:
        joined = np.concatenate([caller.rows for caller in callers])
        result = await callers[0].run(joined)
    except InvalidArgument as error:
        if len(callers) == 1:
            _fail(callers, error)
            return
        # One of them is to blame: each is answered for itself.
        for caller in callers:
            await _answer([caller])
    except Exception as error:  # noqa: BLE001 - it is each caller's
        _fail(callers, error)
    else:
        parts = _parts(result, [len(caller.rows) for caller in callers])
        for caller, part in zip(callers, parts, strict=True):
            if not caller.result.done():
                caller.result.set_result(part)


def _fail(callers: list[_Caller], error: Exception) -> None:
    for caller in callers:
        if not caller.result.done():
            caller.result.set_exception(error)


def _parts(result: Any, counts: list[int]) -> Iterator[Any]:
    """Cuts an array, a list, or a record of arrays into so many rows each.

    Arrays are copied: a part that is kept must not keep all of them.
    """
    stops = np.cumsum(counts).tolist()
    rows = [slice(stop - count, stop) for stop, count in zip(stops, counts, strict=True)]
    if isinstance(result, np.ndarray):
        return (result[each].copy() for each in rows)
    if isinstance(result, list):
        return (result[each] for each in rows)
    fields = {each.name: getattr(result, each.name) for each in dataclasses.fields(result)}
    arrays = [(name, value) for name, value in fields.items() if isinstance(value, np.ndarray)]
    make = type(result)
    return (make(**fields | {name: value[each].copy() for name, value in arrays}) for each in rows)
