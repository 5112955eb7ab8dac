"""One worker: its process, the control channel to it, and its restarts."""

import asyncio
import logging
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from service.stop import EXIT_SECONDS
from service.workers.control import ControlChannel, RequestFailed, WorkerConfig
from service.workers.handoff import ConnectionHandoff

_log = logging.getLogger(__name__)

#: Names of the ports whose connections a worker may be handed.
GRPC, GATEWAY = "grpc", "gateway"

_ROOT = Path(__file__).resolve().parents[2]
# Exponential back-off between restarts, reset once a process has run for _STABLE_SECONDS.
_MIN_DELAY_SECONDS, _MAX_DELAY_SECONDS = 0.5, 30.0
_STABLE_SECONDS = 60.0
# A worker is killed after this many pings in a row without an answer within _BEAT_SECONDS. While it
# imports onnxruntime or loads models, more are allowed, since the interpreter may be locked.
_BEAT_SECONDS, _MOST_MISSED, _MOST_MISSED_LOADING = 2.0, 4, 60
# After this many, a worker gets no new connections.
_SUSPICIOUS = 2


class Supervision(Protocol):
    """Interface of the supervisor to a `Worker`.

    Attributes:
        stopping: Set once the server is shutting down; no process is started after that.
        doors: Names of the ports whose connections the supervisor accepts and hands to the
            workers.
    """

    stopping: asyncio.Event
    doors: Sequence[str]

    def deal(self, door: str, connection: socket.socket) -> None:
        """Hands a connection of a port to a worker that can take it."""

    def deal_waiting(self, door: str) -> None:
        """Called when a worker has room for connections of a port again."""

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics page of the whole server and its content type."""

    def state_changed(self) -> None:
        """Called when a worker has reported a new state."""

    def restarted(self, number: int) -> None:
        """Called when a worker's process is started again."""

    def start_refused(self, number: int, reason: str) -> None:
        """Called when a worker refuses to start for a reason that a restart would not remove."""

    async def reload(self, skip: "Worker | None" = None) -> None:
        """Makes all workers except `skip` reload their models."""


class Worker:
    """A worker as seen by the supervisor, across restarts of its process.

    Args:
        number: Index of the worker, from 0.
        config: Configuration of its processes.
        supervisor: The supervisor.

    Attributes:
        number: Index of the worker, from 0.
        state: Last report of the process: whether it is `listening`, `ready`, `live` and `loading`;
            empty while there is no process.
    """

    def __init__(self, number: int, config: WorkerConfig, supervisor: Supervision):
        self.number = number
        self.state: Mapping[str, bool] = {}
        self._config = config
        self._supervisor = supervisor
        self._process: asyncio.subprocess.Process | None = None
        self._channel: ControlChannel | None = None
        self._handoffs: Mapping[str, ConnectionHandoff] = {}
        # Pings in a row that were not answered in time.
        self._missed = 0

    @property
    def ready(self) -> bool:
        """Whether the worker last reported that it answers calls, and still answers pings."""
        return self.state.get("ready", False) and self._missed < _SUSPICIOUS

    async def keep_running(self) -> None:
        """Runs the process, and restarts it when it exits, until the supervisor is stopping."""
        loop, delay = asyncio.get_running_loop(), _MIN_DELAY_SECONDS
        while not self._supervisor.stopping.is_set():
            began = loop.time()
            try:
                status = await self._run_once()
                how = f"signal {-status}" if status < 0 else f"status {status}"
            except OSError as error:
                how = f"cannot start ({error.strerror})"
            if self._supervisor.stopping.is_set():
                return
            if loop.time() - began > _STABLE_SECONDS:
                delay = _MIN_DELAY_SECONDS
            _log.error("worker %d ended: %s; restarting in %g s", self.number, how, delay)
            await self._back_off(delay)
            self._supervisor.restarted(self.number)
            delay = min(2 * delay, _MAX_DELAY_SECONDS)

    def notify(self, method: str) -> None:
        """Sends `stop`, `drain` or `force_stop`; dropped while there is no process."""
        if self._channel is not None:
            self._channel.notify(method)

    async def request(self, method: str, timeout_seconds: float) -> Any:
        """Requests `metrics` or `reload`; returns the answer, or None if the worker gave none."""
        if self._channel is None:
            return None
        try:
            return await self._channel.request(method, timeout_seconds=timeout_seconds)
        except RequestFailed:
            return None
        except TimeoutError:
            _log.warning(
                "worker %d has not answered in %g s: %s", self.number, timeout_seconds, method
            )
            return None

    def at(self, door: str) -> "WorkerDoor":
        """Returns the worker as a taker of a port's connections."""
        return WorkerDoor(self, door)

    def offer(self, door: str, connection: socket.socket) -> bool:
        """Hands off a connection of a port; returns False if the worker cannot take one now."""
        handoff = self._handoffs.get(door)
        return (
            handoff is not None and self.state.get("listening", False) and handoff.send(connection)
        )

    def kill(self) -> None:
        """Kills the process (SIGKILL) if it is still running."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            # Logged once the other workers are killed too: a full pipe that is not read blocks.
            report = partial(_log.error, "worker %d has not ended; it is killed", self.number)
            asyncio.get_running_loop().call_soon(report)

    async def _back_off(self, seconds: float) -> None:
        """Waits for `seconds`, or until the supervisor is stopping."""
        try:
            await asyncio.wait_for(self._supervisor.stopping.wait(), seconds)
        except TimeoutError:
            return

    async def _run_once(self) -> int:
        """Runs the process from its start to its exit.

        Returns:
            Exit status; a negative one is the signal that ended the process.

        Raises:
            OSError: The process could not be started.
        """
        supervisor = self._supervisor
        handoffs = self._handoffs = {
            door: ConnectionHandoff(
                partial(supervisor.deal, door), partial(supervisor.deal_waiting, door)
            )
            for door in supervisor.doors
        }
        try:
            channel = self._channel = await self._start(handoffs)
            if supervisor.stopping.is_set():
                channel.notify("drain")
            watching = asyncio.create_task(self._watch(channel))
            try:
                await channel.run()
            finally:
                watching.cancel()
        finally:
            self.state, self._missed, self._channel, self._handoffs = {}, 0, None, {}
            for door, handoff in handoffs.items():
                for connection in handoff.close():
                    supervisor.deal(door, connection)
        assert self._process is not None
        try:
            return await asyncio.wait_for(self._process.wait(), EXIT_SECONDS)
        except TimeoutError:
            self.kill()
            return await self._process.wait()

    async def _watch(self, channel: ControlChannel) -> None:
        """Pings the process; kills it if its event loop hangs, so that it is started again.

        Counts unanswered pings, not seconds: a pause of the whole machine costs only one answer.
        """
        while self._missed < self._most_missed:
            try:
                await channel.request("ping", timeout_seconds=_BEAT_SECONDS)
            except TimeoutError:
                self._missed += 1
                continue
            except RequestFailed:
                return  # it has ended
            self._missed = 0
            waiting = max(
                (handoff.waiting_seconds for handoff in self._handoffs.values()), default=0.0
            )
            if waiting > self._most_missed * _BEAT_SECONDS:
                break
            await asyncio.sleep(_BEAT_SECONDS)
        self.kill()
        _log.error("worker %d hangs", self.number)

    @property
    def _most_missed(self) -> int:
        return _MOST_MISSED_LOADING if self.state.get("loading", True) else _MOST_MISSED

    async def _start(self, handoffs: Mapping[str, ConnectionHandoff]) -> ControlChannel:
        """Starts a process and opens the control channel to it."""
        descriptors = {door: handoff.worker_end.fileno() for door, handoff in handoffs.items()}
        end, worker_end = socket.socketpair()
        with end, worker_end:
            # Buffered in the socket until the process reads it.
            end.sendall(self._config.model_dump_json().encode() + b"\n")
            self._process = await asyncio.create_subprocess_exec(
                # -P: modules come from this checkout and not from the working directory.
                sys.executable, "-P", "-m", "service.workers.worker",
                *(f"{door}={descriptor}" for door, descriptor in descriptors.items()),
                str(self.number),
                env={**os.environ, "PYTHONPATH": _python_path()},
                stdin=worker_end.fileno(),
                pass_fds=tuple(descriptors.values()),
                # stdout is for the supervisor's announcements; other output joins the log.
                stdout=sys.stderr,
                stderr=sys.stderr,
                # Ctrl-C at a terminal must reach the supervisor alone.
                start_new_session=True,
            )  # fmt: skip
            worker_end.close()
            for handoff in handoffs.values():
                handoff.worker_end.close()
            return await ControlChannel.open(
                end.dup(),
                {
                    "state": self._on_state,
                    "refused": self._on_refused,
                    "reload": lambda _: self._supervisor.reload(skip=self),
                    "exposition": self._on_exposition,
                },
            )

    async def _on_state(self, state: Mapping[str, bool]) -> None:
        self.state = state
        self._supervisor.state_changed()

    async def _on_exposition(self, accept: str) -> tuple[str, str]:
        page, content_type = await self._supervisor.exposition(accept)
        return page.decode(), content_type

    async def _on_refused(self, reason: str) -> None:
        self._supervisor.start_refused(self.number, reason)


class WorkerDoor:
    """A worker as a taker of one port's connections.

    Args:
        worker: The worker.
        door: Name of the port.
    """

    def __init__(self, worker: Worker, door: str):
        self._worker = worker
        self._door = door

    @property
    def ready(self) -> bool:
        """Whether the worker answers calls."""
        return self._worker.ready

    def offer(self, connection: socket.socket) -> bool:
        """Hands off a connection; returns False if the worker cannot take one now."""
        return self._worker.offer(self._door, connection)


def _python_path() -> str:
    """Returns the PYTHONPATH of the workers, this checkout first."""
    return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
