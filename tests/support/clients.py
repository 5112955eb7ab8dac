"""Client and AsyncClient behind one blocking interface, so that one test covers both."""

import asyncio
import functools
import inspect
import threading
from collections.abc import Coroutine, Iterator
from typing import Any, TypeVar

from latentserve.client import AsyncClient, Client

KINDS = ("sync", "async")
T = TypeVar("T")


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    """The one event loop of all AsyncClients; it runs until the process ends.

    grpc.aio delivers the events of all loops of a process through one pipe, and loses some of
    them when a loop has been closed.
    """
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="tests", daemon=True).start()
    return loop


def awaited(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine of an AsyncClient and returns its result."""
    return asyncio.run_coroutine_threadsafe(work, _loop()).result(120)


class Awaited:
    """An AsyncClient whose methods block, and whose streams are iterators."""

    def __init__(self, *arguments: Any, **options: Any):
        async def make() -> AsyncClient:
            return AsyncClient(*arguments, **options)

        self._client = awaited(make())

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            made = method(*arguments, **options)
            return self._stepped(made) if inspect.isasyncgen(made) else awaited(made)

        return call

    def _stepped(self, stream: Any) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(stream)

        try:
            while True:
                try:
                    yield awaited(step())
                except StopAsyncIteration:
                    return
        finally:
            awaited(stream.aclose())

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *_: object) -> None:
        awaited(self._client.aclose())


def connect(kind: str, target: str, **options: Any) -> Any:
    """A client, `sync` or `async`, for a `with` statement."""
    return Client(target, **options) if kind == "sync" else Awaited(target, **options)
