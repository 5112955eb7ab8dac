"""How the supervisor and a worker talk: lines of JSON over a pair of sockets.

Either may ask the other, and each answers. An end of the link is the other's death: the
kernel tells of it whatever the other died of.
"""

import asyncio
import itertools
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict

from service.settings import Settings
from service.transport.addresses import Shared

_log = logging.getLogger(__name__)

#: Answers a question: takes what came with it, returns what goes back; both become JSON.
Handler = Callable[[Any], Awaitable[Any]]

# The metrics of a worker are a line.
_LONGEST_LINE = 2**26
_ANSWER, _FAILURE = "answer", "failure"


class LinkLost(Exception):
    """The other side is gone, or could not answer."""


class Orders(BaseModel):
    """What all workers are started with: the first line that each is sent."""

    model_config = ConfigDict(frozen=True)

    addresses: tuple[str, ...]
    """Where to listen, together."""
    settings: Settings
    """Those of the server, with the port that was chosen."""


@dataclass(frozen=True)
class Place:
    """A worker's place among the others.

    Attributes:
        number: Which it is, from 0.
        shared: How it gets its connections.
        end: Its end of the link to the supervisor.
    """

    number: int
    shared: Shared
    end: socket.socket


class Link:
    """One end; made by `Link.over`.

    Args:
        reader: What the other side says.
        writer: What is said to it.
        handlers: What answers the other side's questions, by their names.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handler],
    ):
        self._reader, self._writer = reader, writer
        self._handlers = handlers
        self._numbers = itertools.count()
        self._asked: dict[int, asyncio.Future[Any]] = {}
        self._answering: set[asyncio.Task[None]] = set()
        self._lost = False

    @classmethod
    async def over(cls, end: socket.socket, handlers: Mapping[str, Handler]) -> "Link":
        """Takes one end of a pair of sockets, and closes it in the end."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_LONGEST_LINE), handlers)

    async def talk(self) -> None:
        """Hears the other side until it is gone."""
        try:
            while line := await self._reader.readline():
                self._hear(*json.loads(line))
        except (OSError, ValueError) as error:
            # Reset, or a line that was cut off when the other side was killed.
            _log.debug("link: %s", error)
        finally:
            self._lost = True
            for asked in self._asked.values():
                if not asked.done():
                    asked.set_exception(LinkLost("the other side is gone"))
            self._writer.close()

    def tell(self, name: str, value: Any = None) -> None:
        """Says something that wants no answer."""
        self._write(name, None, value)

    async def ask(self, name: str, value: Any = None, *, seconds: float | None = None) -> Any:
        """Asks, and returns the answer.

        Args:
            name: The question, one that the other side has a handler for.
            value: What goes with it.
            seconds: How long to wait for the answer; None for as long as the link lasts.

        Raises:
            LinkLost: The other side is gone or could not answer.
            TimeoutError: It has not answered in time.
        """
        if self._lost:
            raise LinkLost("the other side is gone")
        number = next(self._numbers)
        answer = self._asked[number] = asyncio.get_running_loop().create_future()
        try:
            self._write(name, number, value)
            return await asyncio.wait_for(answer, seconds)
        finally:
            del self._asked[number]

    def _hear(self, name: str, number: int | None, value: Any) -> None:
        if name in (_ANSWER, _FAILURE):
            asked = None if number is None else self._asked.get(number)
            if asked is not None and not asked.done():
                if name == _ANSWER:
                    asked.set_result(value)
                else:
                    asked.set_exception(LinkLost(value))
            return
        task = asyncio.create_task(self._answer(name, number, value))
        self._answering.add(task)
        task.add_done_callback(self._answering.discard)

    async def _answer(self, name: str, number: int | None, value: Any) -> None:
        try:
            kind, said = _ANSWER, await self._handlers[name](value)
        except Exception as error:  # noqa: BLE001 - whatever it was, the other side hears of it
            _log.exception("link: %s", name)
            kind, said = _FAILURE, f"{type(error).__name__}: {error}"
        if number is not None:
            self._write(kind, number, said)

    def _write(self, name: str, number: int | None, value: Any) -> None:
        if not self._lost:
            self._writer.write(line(name, number, value))


def line(name: str, number: int | None = None, value: Any = None) -> bytes:
    """Returns what is said as it is sent."""
    return json.dumps([name, number, value]).encode() + b"\n"
