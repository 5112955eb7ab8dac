"""Joins concurrent small calls into one message.

A call is sent at once if none with its key is in flight, together with those that are made in
the same event-loop iteration. Calls that are made before the reply are sent together after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from itertools import accumulate, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve.errors import InvalidArgument, ProtocolError

#: Most rows of a joined message; a call of more rows is not joined.
MOST_ROWS = 256

Run = Callable[[Any, NDArray[Any]], Awaitable[Any]]

# Rows of a call and the future of its result. A plain tuple: there is one for each call.
_Call = tuple[NDArray[Any], asyncio.Future[Any]]


class _Queue:
    """Calls with the same key that wait for the next message."""

    __slots__ = ("calls", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        # Kept, since getting the running loop costs a system call (Python 3.11).
        self.loop = loop
        self.calls: list[_Call] = []


class Coalescer:
    """Sends calls, joining those with the same key; belongs to one event loop.

    Args:
        run: Makes the call of a key for any rows.
    """

    def __init__(self, run: Run):
        self._run = run
        self._queues: dict[Hashable, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, key: Hashable, rows: NDArray[Any]) -> Awaitable[Any]:
        """Makes a call, alone or joined with others.

        Neither the cancellation of a call nor an error in its rows affects the others.

        Args:
            key: Equal for calls that may be joined.
            rows: Rows of the call, [N, ...].

        Returns:
            The result that the call would have had alone.
        """
        if len(rows) > MOST_ROWS:
            return self._run(key, rows)
        queue = self._queues.get(key) or self._open(key)
        result = queue.loop.create_future()
        queue.calls.append((rows, result))
        return result

    def _open(self, key: Hashable) -> _Queue:
        """Opens a queue, whose first message is sent in the next event-loop iteration."""
        loop = asyncio.get_running_loop()
        queue = self._queues[key] = _Queue(loop)
        task = loop.create_task(self._send(key, queue))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return queue

    async def _send(self, key: Hashable, queue: _Queue) -> None:
        """Sends one message after another, until no call waits."""
        calls: list[_Call] = []
        try:
            while calls := _take(queue):
                await _answer(self._run, key, calls)
                # Callers that have their results now may call again in time for the next message.
                await asyncio.sleep(0)
        finally:
            del self._queues[key]
            # None are left, unless the loop is being closed.
            for _, result in (*calls, *queue.calls):
                result.cancel()


def _take(queue: _Queue) -> list[_Call]:
    """Removes the calls of one message from a queue, without those that were cancelled."""
    waiting, queue.calls = queue.calls, []
    taken: list[_Call] = []
    count = 0
    for place, call in enumerate(waiting):
        rows, result = call
        if result.done():
            continue
        count += len(rows)
        if count > MOST_ROWS:
            queue.calls = waiting[place:]
            break
        taken.append(call)
    return taken


async def _answer(run: Run, key: Hashable, calls: list[_Call]) -> None:
    """Makes one call of several, and sets their results."""
    try:
        parts = await _results(run, key, [rows for rows, _ in calls])
    except InvalidArgument as error:
        if len(calls) == 1:
            _fail(calls, error)
            return
        # The rows of one of them are wrong: each is sent alone.
        for call in calls:
            await _answer(run, key, [call])
    except Exception as error:  # noqa: BLE001 - raised to each caller
        _fail(calls, error)
    else:
        for (_, result), part in zip(calls, parts, strict=True):
            if not result.done():
                result.set_result(part)


async def _results(run: Run, key: Hashable, rows: list[NDArray[Any]]) -> list[Any]:
    """Makes one call for several arrays of rows, and cuts its result."""
    if len(rows) == 1:
        return [await run(key, rows[0])]
    return _parts(await run(key, np.concatenate(rows)), [len(array) for array in rows])


def _fail(calls: list[_Call], error: Exception) -> None:
    for _, result in calls:
        if not result.done():
            result.set_exception(error)


def _parts(result: Any, counts: list[int]) -> list[Any]:
    """Cuts an array, a list, or a dataclass of arrays into parts of the given numbers of rows.

    Other fields of a dataclass are the same in every part.

    Raises:
        ProtocolError: The result has more rows or fewer.
    """
    if isinstance(result, np.ndarray | list):
        return _cut(result, counts)
    # Not by the class's `__init__`, which sets each field of a frozen dataclass by a call: that
    # takes longer than all else here.
    parts = [object.__new__(type(result)) for _ in counts]
    inside = [vars(part) for part in parts]
    for name, value in vars(result).items():
        cut = _cut(value, counts) if isinstance(value, np.ndarray) else repeat(value)
        for values, part in zip(inside, cut, strict=False):
            values[name] = part
    return parts


def _cut(rows: Any, counts: list[int]) -> list[Any]:
    """Cuts an array or a list into parts of the given numbers of rows.

    Parts of an array are copies: one that is kept must not keep the whole array in memory.
    """
    stops = list(accumulate(counts))
    if len(rows) != stops[-1]:
        raise ProtocolError(f"reply: got {len(rows)} rows, wanted {stops[-1]}")
    if isinstance(rows, list):
        return [rows[stop - count : stop] for count, stop in zip(counts, stops, strict=True)]
    # Parts of one row each, the usual case, come without a slice for each.
    parts = rows[:, None] if len(counts) == len(rows) else np.split(rows, stops[:-1])
    return [part.copy() for part in parts]
