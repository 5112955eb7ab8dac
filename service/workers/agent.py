"""A worker's side of the control channel."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from service.observe.merge import TEXT
from service.stop import Stop
from service.workers.control import ControlChannel, RequestFailed


class WorkerAgent:
    """Carries out the supervisor's commands and reports the worker's state.

    Args:
        stop: The stop of this server. The supervisor's messages `stop`, `drain` and `force_stop`
            begin, drain and force it; it also drains when the supervisor is gone.
        exposition: Returns the metrics page and its content type for an Accept header.
        reload: Reloads this worker's models; a failure is logged, not raised.
    """

    def __init__(
        self,
        stop: Stop,
        exposition: Callable[[str], tuple[bytes, str]],
        reload: Callable[[], Awaitable[None]],
    ):
        self._stop = stop
        self._exposition = exposition
        self._reload = reload

    async def connect(self, control: socket.socket) -> None:
        """Opens the channel and begins to answer the supervisor; call it before other methods.

        Args:
            control: The worker's end of the control channel.
        """
        self._channel = await ControlChannel.open(
            control,
            {
                "ping": self._on_ping,
                "stop": self._on_stop,
                "drain": self._on_drain,
                "force_stop": self._on_force_stop,
                "metrics": self._on_metrics,
                "reload": lambda _: self._reload(),
            },
        )
        self._task = asyncio.create_task(self._run())

    def report(self, *, listening: bool, live: bool, ready: bool, loading: bool) -> None:
        """Sends the worker's state to the supervisor.

        Args:
            listening: Whether it accepts connections.
            live: Whether its device works; if not, only a restart helps.
            ready: Whether it serves its default model.
            loading: Whether it is loading models.
        """
        state = {"listening": listening, "live": live, "ready": ready, "loading": loading}
        self._channel.notify("state", state)

    async def reload_others(self) -> None:
        """Makes all other workers reload; returns when they have, or the supervisor is gone."""
        with suppress(RequestFailed):
            await self._channel.request("reload")

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics page of the whole server; this worker's if the supervisor is gone."""
        try:
            page, content_type = await self._channel.request("exposition", accept)
        except RequestFailed:
            return await asyncio.to_thread(self._exposition, accept)
        return page.encode(), content_type

    async def _run(self) -> None:
        await self._channel.run()
        self._stop.drain()

    async def _on_ping(self, _: object) -> None:
        """Answers from the event loop: while that hangs, there is no answer."""

    async def _on_stop(self, _: object) -> None:
        self._stop.begin()

    async def _on_drain(self, _: object) -> None:
        self._stop.drain()

    async def _on_force_stop(self, _: object) -> None:
        self._stop.force()

    async def _on_metrics(self, _: object) -> str:
        page, _content_type = await asyncio.to_thread(self._exposition, TEXT)
        return page.decode()
