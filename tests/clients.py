"""Both clients behind one face, so that one test tells about both."""

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

from latentserve.client import AsyncClient, Client

KINDS = ("sync", "async")


class Awaited:
    """An AsyncClient whose calls are awaited, and whose streams are stepped, by a runner."""

    def __init__(self, *arguments: Any, **options: Any):
        self._runner = asyncio.Runner()
        try:
            self._client = self._runner.run(self._made(arguments, options))
        except BaseException:
            self._runner.close()
            raise

    async def _made(self, arguments: Any, options: Any) -> AsyncClient:
        return AsyncClient(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._client, name)

        def call(*arguments: Any, **options: Any) -> Any:
            made = method(*arguments, **options)
            if inspect.isasyncgen(made):
                return self._stepped(made)
            return self._runner.run(made)

        return call

    def _stepped(self, stream: Any) -> Iterator[Any]:
        async def step() -> Any:
            return await anext(stream)

        try:
            while True:
                try:
                    yield self._runner.run(step())
                except StopAsyncIteration:
                    return
        finally:
            self._runner.run(stream.aclose())

    def close(self) -> None:
        self._runner.run(self._client.aclose())
        self._runner.close()

    def __enter__(self) -> "Awaited":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def connect(kind: str, target: str, **options: Any) -> Any:
    """A client of a kind, to be used in a `with` statement."""
    return Client(target, **options) if kind == "sync" else Awaited(target, **options)
