"""Control channel between the supervisor and a worker: JSON lines over a socket pair.

Either side sends requests and notifications, and answers those of the other. End-of-file means that
the other process is gone: however a process dies, the kernel closes its end.
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

from service.net.addresses import Shared
from service.settings import Settings

_log = logging.getLogger(__name__)

#: Handler of one method: takes a JSON value and returns the JSON value to answer with.
Handler = Callable[[Any], Awaitable[Any]]

# A worker's whole metrics page travels as one line.
_MAX_LINE_BYTES = 2**26
_ANSWER, _FAILURE = "answer", "failure"


class RequestFailed(Exception):
    """The other process is gone, or its handler raised."""


class WorkerConfig(BaseModel):
    """Configuration of every worker, sent as the first line on its control channel."""

    model_config = ConfigDict(frozen=True)

    addresses: tuple[str, ...]
    """Addresses that all workers listen on."""
    settings: Settings
    """The server's settings, with the port that was bound."""


@dataclass(frozen=True)
class WorkerContext:
    """Number and sockets of a server that runs as one of several workers.

    Attributes:
        number: Index of the worker, from 0.
        shared: Source of the worker's connections.
        gateway: Unix socket over which the supervisor hands over connections to the gateway; None
            if there is no gateway.
        control: The worker's end of the control channel.
    """

    number: int
    shared: Shared
    gateway: socket.socket | None
    control: socket.socket


class ControlChannel:
    """One end of a control channel; created by `ControlChannel.open`.

    Args:
        reader: Lines from the other side.
        writer: Lines to the other side.
        handlers: Handlers of the other side's requests and notifications, by method.
    """

    def __init__(
        self,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        handlers: Mapping[str, Handler],
    ):
        self._reader, self._writer = reader, writer
        self._handlers = handlers
        self._ids = itertools.count()
        self._pending: dict[int, asyncio.Future[Any]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, end: socket.socket, handlers: Mapping[str, Handler]) -> "ControlChannel":
        """Opens a channel over one end of a socket pair, and takes ownership of the socket."""
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_MAX_LINE_BYTES), handlers)

    async def run(self) -> None:
        """Handles incoming messages until the other side closes."""
        try:
            while line := await self._reader.readline():
                self._handle(*json.loads(line))
        except (OSError, ValueError) as error:
            # The connection was reset, or a line is incomplete because the other side was killed.
            _log.debug("control channel: %s", error)
        finally:
            self._closed = True
            for response in self._pending.values():
                if not response.done():
                    response.set_exception(RequestFailed("the other process is gone"))
            self._writer.close()

    def notify(self, method: str, value: Any = None) -> None:
        """Sends a notification, which is not answered; drops it if the channel is closed."""
        self._write(method, None, value)

    async def request(
        self, method: str, value: Any = None, *, timeout_seconds: float | None = None
    ) -> Any:
        """Sends a request and returns the answer.

        Args:
            method: Name of a handler on the other side.
            value: JSON value for that handler.
            timeout_seconds: Maximum wait for the answer; None to wait until the channel closes.

        Raises:
            RequestFailed: The other process is gone, or its handler raised.
            TimeoutError: No answer was received in time.
        """
        if self._closed:
            raise RequestFailed("the other process is gone")
        request_id = next(self._ids)
        response = self._pending[request_id] = asyncio.get_running_loop().create_future()
        try:
            self._write(method, request_id, value)
            return await asyncio.wait_for(response, timeout_seconds)
        finally:
            del self._pending[request_id]

    def _handle(self, method: str, request_id: int | None, value: Any) -> None:
        if method in (_ANSWER, _FAILURE):
            response = None if request_id is None else self._pending.get(request_id)
            if response is not None and not response.done():
                if method == _ANSWER:
                    response.set_result(value)
                else:
                    response.set_exception(RequestFailed(value))
            return
        task = asyncio.create_task(self._respond(method, request_id, value))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _respond(self, method: str, request_id: int | None, value: Any) -> None:
        try:
            outcome, result = _ANSWER, await self._handlers[method](value)
        except Exception as error:  # noqa: BLE001 - any failure is reported to the requester
            _log.exception("control channel: %s", method)
            outcome, result = _FAILURE, f"{type(error).__name__}: {error}"
        if request_id is not None:
            self._write(outcome, request_id, result)

    def _write(self, method: str, request_id: int | None, value: Any) -> None:
        if not self._closed:
            self._writer.write(encode_message(method, request_id, value))


def encode_message(method: str, request_id: int | None = None, value: Any = None) -> bytes:
    """Encodes a message as one line of JSON."""
    return json.dumps([method, request_id, value]).encode() + b"\n"
