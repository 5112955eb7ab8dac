"""Joins small calls that run at the same time into one."""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve.errors import InvalidArgument

#: A call of more rows than this is worth a message of its own; no joined one has more.
MOST_ROWS = 256

Run = Callable[[NDArray[Any]], Awaitable[Any]]


@dataclass(eq=False)
class _Caller:
    rows: NDArray[Any]
    run: Run
    result: asyncio.Future[Any]


@dataclass
class _Line:
    """Calls of one kind: whether one is on its way, and who waits for the next."""

    busy: bool = False
    waiting: list[_Caller] = field(default_factory=list)


class Coalescer:
    """Sends the first call of its kind at once, and together those that come meanwhile."""

    def __init__(self) -> None:
        self._lines: dict[Hashable, _Line] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, kind: Hashable, rows: NDArray[Any], run: Run) -> Any:
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
            return await run(rows)
        line = self._lines.setdefault(kind, _Line())
        caller = _Caller(rows, run, asyncio.get_running_loop().create_future())
        line.waiting.append(caller)
        if not line.busy:
            line.busy = True
            self._spawn(self._serve(kind, line))
        return await caller.result

    async def _serve(self, kind: Hashable, line: _Line) -> None:
        """Sends what waits until nobody does."""
        try:
            while callers := _take(line):
                await _send(callers)
        finally:
            del self._lines[kind]

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


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


async def _send(callers: list[_Caller]) -> None:
    try:
        joined = np.concatenate([caller.rows for caller in callers])
        result = await callers[0].run(joined)
    except InvalidArgument as error:
        if len(callers) == 1:
            _fail(callers, error)
            return
        # One of them is to blame: each is answered for itself.
        for caller in callers:
            await _send([caller])
    except Exception as error:  # noqa: BLE001 - it is each caller's
        _fail(callers, error)
    else:
        start = 0
        for caller in callers:
            stop = start + len(caller.rows)
            if not caller.result.done():
                caller.result.set_result(_part(result, slice(start, stop)))
            start = stop


def _fail(callers: list[_Caller], error: Exception) -> None:
    for caller in callers:
        if not caller.result.done():
            caller.result.set_exception(error)


def _part(result: Any, rows: slice) -> Any:
    """Some rows of an array, a list, or a record of arrays."""
    if isinstance(result, np.ndarray):
        return result[rows].copy()
    if isinstance(result, list):
        return result[rows]
    fields = {
        each.name: _part(value, rows)
        for each in dataclasses.fields(result)
        if isinstance(value := getattr(result, each.name), np.ndarray)
    }
    return dataclasses.replace(result, **fields)
