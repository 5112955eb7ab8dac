"""Stream processing in order, with a bounded number of messages in flight."""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Protocol, TypeVar

from service.api.wire import Chunks

A = TypeVar("A")
B = TypeVar("B")

#: Maximum messages in flight: one is computed while the next one is read.
WINDOW = 2

_END = object()


class Memory(Protocol):
    """Counter of the bytes of replies not consumed yet, implemented by `Admission`."""

    def hold(self, count: int) -> None:
        """Adds bytes of a reply that has been computed."""

    def release(self, count: int) -> None:
        """Subtracts bytes of a reply that has been consumed."""


async def in_order(
    items: AsyncIterator[A],
    answer: Callable[[A], Awaitable[B]],
    window: int = WINDOW,
    memory: Memory | None = None,
) -> AsyncGenerator[B, None]:
    """Maps `answer` over a stream and yields the answers in the order of the items.

    Reads at most `window` items ahead of the consumer: if a client stops reading replies, its
    requests are not read either (back-pressure).

    Args:
        items: The stream.
        answer: Computes the answer to one item.
        window: Maximum items whose answers are being computed or have not been consumed.
        memory: Counts the bytes of answers, which then must be replies, until they are consumed;
            None to leave them uncounted.

    Raises:
        Exception: Any exception of `items` or `answer`; the other answers are cancelled.
    """
    pending: deque[asyncio.Task[B]] = deque()
    reader: asyncio.Task[object] | None = None
    ended = False

    async def read() -> object:
        return await anext(items, _END)

    async def answered(item: A) -> B:
        reply = await answer(item)
        if memory is not None:
            memory.hold(_size(reply))
        return reply

    try:
        while True:
            if reader is None and not ended and len(pending) < window:
                reader = asyncio.create_task(read())
            waited = [task for task in (reader, *list(pending)[:1]) if task is not None]
            if not waited:
                return
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if reader is not None and reader.done():
                item, reader = reader.result(), None
                if item is _END:
                    ended = True
                else:
                    pending.append(asyncio.create_task(answered(item)))  # type: ignore[arg-type]
            while pending and pending[0].done():
                reply = pending.popleft().result()
                if memory is not None:
                    memory.release(_size(reply))
                yield reply
    finally:
        left = [*pending, reader] if reader is not None else [*pending]
        for task in left:
            task.cancel()
        if memory is not None:
            for task in pending:
                # Not after `gather`, since this wait may itself be cancelled.
                task.add_done_callback(partial(_release, memory))
        await asyncio.gather(*left, return_exceptions=True)


def _release(memory: Memory, answered: asyncio.Task[Any]) -> None:
    if not answered.cancelled() and answered.exception() is None:
        memory.release(_size(answered.result()))


def _size(reply: Any) -> int:
    """Length in bytes of a reply: a message, or the chunks of a serialised one."""
    if isinstance(reply, tuple):
        chunks: Chunks = reply
        return sum(map(len, chunks))
    return int(reply.ByteSize())
