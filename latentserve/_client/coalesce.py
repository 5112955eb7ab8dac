"""Joins concurrent small calls into one message.

A call is sent at once if none with its key is in flight, together with those made in the same
event-loop iteration. Calls made before the reply are sent together after it.
"""

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from itertools import accumulate, repeat
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve.errors import InvalidArgument, ProtocolError

#: Maximum number of rows in a joined message; a larger call is sent alone.
MAX_ROWS = 256
#: Maximum bytes of the rows of a call that is joined with others. Joining saves what each message
#: costs, which is little beside the cost of large rows; and these would wait for one another.
MAX_CALL_BYTES = 2**16
# Maximum bytes of the rows in a joined message.
_MAX_BYTES = 2**20

#: Labels of rows, [N, L], or None for calls without any.
Labels = NDArray[Any] | None
#: Makes the call of a key with rows [N, ...] and their labels, and returns its result.
Run = Callable[[Any, NDArray[Any], Labels], Awaitable[Any]]

# Rows of a call, the future of its result, and their labels. A tuple, since one is made for each
# call.
_Call = tuple[NDArray[Any], asyncio.Future[Any], Labels]


class _Queue:
    """Calls with the same key that wait for the next message."""

    __slots__ = ("calls", "loop")

    def __init__(self, loop: asyncio.AbstractEventLoop):
        # Stored, since getting the running loop costs a system call (Python 3.11).
        self.loop = loop
        self.calls: list[_Call] = []


class Coalescer:
    """Sends calls, joining those that have the same key. Belongs to one event loop.

    Args:
        run: Makes the call of a key with given rows and labels.
    """

    def __init__(self, run: Run):
        self._run = run
        self._queues: dict[Hashable, _Queue] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def run(self, key: Hashable, rows: NDArray[Any], labels: Labels = None) -> Awaitable[Any]:
        """Makes a call, alone or joined with others.

        Neither the cancellation of a call nor an error in its rows affects the others.

        Args:
            key: Equal for calls that may be joined.
            rows: Rows of the call, [N, ...].
            labels: Their labels, which travel with them: [N, L]. All calls of a key have some, or
                none has.

        Returns:
            The result that the call would have had alone.
        """
        if len(rows) > MAX_ROWS or rows.nbytes > MAX_CALL_BYTES:
            return self._run(key, rows, labels)
        queue = self._queues.get(key) or self._open(key)
        result = queue.loop.create_future()
        queue.calls.append((rows, result, labels))
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
                # Gives callers that just got a result time to call again, so that the next message
                # has their rows too.
                await asyncio.sleep(0)
        finally:
            del self._queues[key]
            # Calls are left only if the event loop is being closed.
            for _, result, _ in (*calls, *queue.calls):
                result.cancel()


def _take(queue: _Queue) -> list[_Call]:
    """Takes the calls of the next message from a queue, and drops cancelled ones."""
    waiting, queue.calls = queue.calls, []
    taken: list[_Call] = []
    count = size = 0
    for place, call in enumerate(waiting):
        rows, result, _ = call
        if result.done():
            continue
        count += len(rows)
        size += rows.nbytes
        if count > MAX_ROWS or size > _MAX_BYTES:
            queue.calls = waiting[place:]
            break
        taken.append(call)
    return taken


async def _answer(run: Run, key: Hashable, calls: list[_Call]) -> None:
    """Sends several calls as one, and sets their results or errors."""
    try:
        parts = await _results(run, key, calls)
    except InvalidArgument as error:
        if len(calls) == 1:
            _fail(calls, error)
            return
        # At least one call has invalid rows. Each is sent alone, so that the others succeed.
        for call in calls:
            await _answer(run, key, [call])
    except Exception as error:  # noqa: BLE001 - raised to each caller
        _fail(calls, error)
    else:
        for (_, result, _), part in zip(calls, parts, strict=True):
            if not result.done():
                result.set_result(part)


async def _results(run: Run, key: Hashable, calls: list[_Call]) -> list[Any]:
    """Makes one call for the rows of several, and splits its result."""
    if len(calls) == 1:
        rows, _, labels = calls[0]
        return [await run(key, rows, labels)]
    joined = np.concatenate([rows for rows, _, _ in calls])
    given = [labels for _, _, labels in calls if labels is not None]
    result = await run(key, joined, np.concatenate(given) if given else None)
    return _parts(result, [len(rows) for rows, _, _ in calls])


def _fail(calls: list[_Call], error: Exception) -> None:
    for _, result, _ in calls:
        if not result.done():
            result.set_exception(error)


def _parts(result: Any, counts: list[int]) -> list[Any]:
    """Splits an array, a list or a dataclass of arrays into parts of `counts` rows.

    Fields of a dataclass that are not arrays are the same in every part.

    Raises:
        ProtocolError: The number of rows is not the sum of `counts`.
    """
    if isinstance(result, np.ndarray | list):
        return _cut(result, counts)
    # Sets the fields directly: `__init__` of a frozen dataclass makes a call for each field, which
    # takes longer than everything else here.
    parts = [object.__new__(type(result)) for _ in counts]
    fields = [vars(part) for part in parts]
    for name, value in vars(result).items():
        cut = _cut(value, counts) if isinstance(value, np.ndarray) else repeat(value)
        for values, part in zip(fields, cut, strict=False):
            values[name] = part
    return parts


def _cut(rows: Any, counts: list[int]) -> list[Any]:
    """Splits an array or a list into parts of `counts` rows.

    Parts of an array are copies, so that a part does not keep the whole array in memory.
    """
    stops = list(accumulate(counts))
    if len(rows) != stops[-1]:
        raise ProtocolError(f"reply: got {len(rows)} rows, wanted {stops[-1]}")
    if isinstance(rows, list):
        return [rows[stop - count : stop] for count, stop in zip(counts, stops, strict=True)]
    # Parts of one row each, the usual case, need no call of np.split.
    parts = rows[:, None] if len(counts) == len(rows) else np.split(rows, stops[:-1])
    return [part.copy() for part in parts]
