"""Several servers on one port: starts them, watches them, and speaks for them all.

Each worker is the whole server of `service.server` in a process of its own. The supervisor
owns the signals and the port, starts a worker again that died, and answers for all of them by
HTTP. For our own HTTP/2 it accepts the connections and deals them out in turn: the kernel
(SO_REUSEPORT) deals by chance, and a few long connections, which is what gRPC's clients make,
might all meet one worker. grpcio takes no connections from others, and so there the kernel has
to. It imports neither onnxruntime nor grpc.
"""

import asyncio
import logging
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from common.cpus import usable_cpus
from service.errors import StartError
from service.observe import logs
from service.observe.http import HttpServer
from service.observe.merge import gathered
from service.settings import Settings
from service.transport.addresses import (
    BACKLOG,
    accept_from,
    exclusive_sockets,
    shared_sockets,
)
from service.workers.control import Link, LinkLost, Orders
from service.workers.handoff import Dealing
from service.workers.worker import END_SECONDS

_log = logging.getLogger(__name__)

_ROOT = Path(__file__).resolve().parents[2]
# A worker that ends is started again after so long, and after twice as long each time until
# one has lived for a while.
_FIRST_DELAY, _LONGEST_DELAY = 0.5, 30.0
_LONG_LIFE = 60.0
# How long the first worker that has loaded waits for the others before callers are let in.
_GATHER_SECONDS = 5.0
# What a worker may take to tell its metrics, and to reload.
_METRICS_SECONDS = 2.0
_RELOAD_SECONDS = 120.0


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then lets the workers drain; a second one hurries them.

    SIGHUP makes them look through the models folder again.

    Raises:
        StartError: A port, or what a worker wants, cannot be had.
    """
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(_Supervisor(settings).run())


class _Worker:
    """One worker, through all its lives.

    Attributes:
        number: Which, from 0.
        state: Whether it is `listening`, `ready` and `live`, as it told last; empty where
            there is no process.
    """

    def __init__(self, number: int, orders: Orders, supervisor: "_Supervisor"):
        self.number = number
        self.state: Mapping[str, bool] = {}
        self._orders = orders
        self._supervisor = supervisor
        self._process: asyncio.subprocess.Process | None = None
        self._link: Link | None = None
        self._dealing: Dealing | None = None

    async def live(self) -> None:
        """Runs it, and again where it ends."""
        loop, delay = asyncio.get_running_loop(), _FIRST_DELAY
        while not self._supervisor.stopping.is_set():
            began = loop.time()
            try:
                status = await self._once()
                how = f"signal {-status}" if status < 0 else f"status {status}"
            except OSError as error:
                how = f"no process ({error.strerror})"
            if self._supervisor.stopping.is_set():
                return
            if loop.time() - began > _LONG_LIFE:
                delay = _FIRST_DELAY
            _log.error("worker %d ended: %s; again in %g s", self.number, how, delay)
            await self._supervisor.pause(delay)
            delay = min(2 * delay, _LONGEST_DELAY)

    def tell(self, what: str) -> None:
        """Tells it to `stop` or to `hurry`."""
        if self._link is not None:
            self._link.tell(what)

    async def ask(self, what: str, seconds: float) -> Any:
        """Asks it for its `metrics`, or to `reload`; None where it is away or is late."""
        if self._link is None:
            return None
        try:
            return await self._link.ask(what, seconds=seconds)
        except LinkLost:
            return None
        except TimeoutError:
            _log.warning("worker %d has not answered in %g s: %s", self.number, seconds, what)
            return None

    def takes(self, accepted: socket.socket) -> bool:
        """Gives it a connection, where it listens and has room for one."""
        return (
            self._dealing is not None
            and self.state.get("listening", False)
            and self._dealing.give(accepted)
        )

    def kill(self) -> None:
        """Ends it at once, if it is still there."""
        if self._process is not None and self._process.returncode is None:
            _log.error("worker %d has not ended; it is killed", self.number)
            self._process.kill()

    async def _once(self) -> int:
        """One life: from a process's beginning to its end, whose status it returns."""
        dealing = self._dealing = Dealing() if self._supervisor.deals else None
        try:
            await self._talk(dealing)
        finally:
            self.state, self._link, self._dealing = {}, None, None
            for each in [] if dealing is None else dealing.close():
                self._supervisor.deal(each)
        assert self._process is not None
        try:
            return await asyncio.wait_for(self._process.wait(), END_SECONDS)
        except TimeoutError:
            self.kill()
            return await self._process.wait()

    async def _talk(self, dealing: Dealing | None) -> None:
        """Begins a process, and talks with it until it is gone."""
        descriptors = () if dealing is None else (dealing.theirs.fileno(),)
        ours, its = socket.socketpair()
        with ours, its:
            # They wait there until it has begun.
            ours.sendall(self._orders.model_dump_json().encode() + b"\n")
            self._process = await asyncio.create_subprocess_exec(
                # What is imported is this checkout, and not what lies where it was started.
                sys.executable, "-P", "-m", "service.workers.worker",
                *map(str, (*descriptors, self.number)),
                env={**os.environ, "PYTHONPATH": _path()},
                stdin=its.fileno(),
                pass_fds=descriptors,
                # It has nothing to say there; what a library prints belongs to the log.
                stdout=sys.stderr,
                # Ctrl-C at a terminal is for the supervisor alone.
                start_new_session=True,
            )  # fmt: skip
            its.close()
            if dealing is not None:
                dealing.theirs.close()
            link = self._link = await Link.over(
                ours.dup(),
                {
                    "state": self._on_state,
                    "refused": self._on_refused,
                    "reload": lambda _: self._supervisor.reload(beside=self),
                },
            )
        if self._supervisor.stopping.is_set():
            link.tell("stop")
        await link.talk()

    async def _on_state(self, state: Mapping[str, bool]) -> None:
        self.state = state
        self._supervisor.look()

    async def _on_refused(self, reason: str) -> None:
        self._supervisor.refused(self.number, reason)


class _Supervisor:
    """All of them."""

    def __init__(self, settings: Settings):
        self.stopping = asyncio.Event()
        self.deals = settings.transport == "http2"
        self._settings = settings
        self._ports: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._turns: deque[_Worker] = deque()
        self._problem = ""
        self._served = False
        self._announced = False
        self._workers: list[_Worker] = []
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        settings = self._settings
        self._loop = loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._on_signal)
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)
        bind = exclusive_sockets if self.deals else shared_sockets
        held = self._ports = bind(settings.host, settings.grpc_port)
        port = held[0].getsockname()[1]
        self._where = [f"listening on {settings.host}:{port}"]
        http = None
        try:
            if settings.http_port != "off":
                http = HttpServer(
                    settings.host, settings.http_port, self._exposition, self._live, self._ready
                )
                self._where.append(f"metrics on http://{settings.host}:{http.port}/metrics")
                http.start()
            await self._supervise(port, [each.getsockname()[0] for each in held])
        finally:
            if http is not None:
                http.close()
            for each in held:
                each.close()
        if self._problem:
            raise StartError(self._problem)
        _log.info("stopped")

    async def _supervise(self, port: int, addresses: Sequence[str]) -> None:
        settings = self._settings
        own = {
            "grpc_port": port,
            # Only the supervisor asks a worker, and not by HTTP.
            "http_port": "off",
            "threads": settings.threads or max(1, usable_cpus() // settings.workers),
            "workers": 1,
        }
        orders = Orders(addresses=tuple(addresses), settings=settings.model_copy(update=own))
        self._workers = [_Worker(number, orders, self) for number in range(settings.workers)]
        self._turns.extend(self._workers)
        try:
            await asyncio.gather(*(worker.live() for worker in self._workers))
        finally:
            self._kill()

    # What workers call.

    def look(self) -> None:
        """Looks at their states, of which one has changed."""
        listening = [worker.state.get("listening", False) for worker in self._workers]
        if any(listening) and not self._served:
            self._served = True
            self._loop.call_later(_GATHER_SECONDS, self._open)
        if all(listening):
            self._open()

    def _open(self) -> None:
        """Lets callers in, and says so; once."""
        if self._announced or self.stopping.is_set():
            return
        self._announced = True
        if self.deals:
            for each in self._ports:
                each.listen(BACKLOG)
                self._accepting.append(asyncio.create_task(accept_from(each, self.deal)))
        for line in self._where:
            print(f"latentserve: {line}", flush=True)

    def deal(self, accepted: socket.socket) -> None:
        """Gives a connection to the worker whose turn it is."""
        for _ in self._workers:
            worker = self._turns[0]
            self._turns.rotate(-1)
            if worker.takes(accepted):
                return
        accepted.close()
        _log.warning("connection: refused, no worker serves")

    async def _close_ports(self) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for each in self._ports:
            each.close()

    def refused(self, number: int, reason: str) -> None:
        """A worker cannot start: no other can, unless there was one that could."""
        if self._served:
            _log.error("worker %d: %s", number, reason)
            return
        self._problem = self._problem or reason
        self._stop()

    async def reload(self, beside: _Worker | None = None) -> None:
        """Lets all workers but one reload, and returns when they have."""
        others = (worker for worker in self._workers if worker is not beside)
        await asyncio.gather(*(worker.ask("reload", _RELOAD_SECONDS) for worker in others))

    async def pause(self, seconds: float) -> None:
        """Waits, but not while stopping."""
        try:
            await asyncio.wait_for(self.stopping.wait(), seconds)
        except TimeoutError:
            return

    # Signals.

    def _on_signal(self) -> None:
        if not self.stopping.is_set():
            self._stop()
            return
        for worker in self._workers:
            worker.tell("hurry")
        self._loop.call_later(END_SECONDS, self._kill)

    def _on_hangup(self) -> None:
        self._spawn(self.reload())

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _stop(self) -> None:
        self.stopping.set()
        self._spawn(self._close_ports())
        for worker in self._workers:
            worker.tell("stop")
        self._loop.call_later(self._settings.drain_seconds + END_SECONDS, self._kill)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    # What the HTTP port's threads call.

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        told = asyncio.run_coroutine_threadsafe(self._pages(), self._loop)
        return gathered(told.result(2 * _METRICS_SECONDS), accept)

    async def _pages(self) -> dict[str, str]:
        pages = await asyncio.gather(
            *(worker.ask("metrics", _METRICS_SECONDS) for worker in self._workers)
        )
        return {
            str(worker.number): page
            for worker, page in zip(self._workers, pages, strict=True)
            if page is not None
        }

    def _live(self) -> bool:
        """A worker that is away comes back; one whose device is lost does not."""
        return all(worker.state.get("live", True) for worker in self._workers)

    def _ready(self) -> bool:
        """Those that are away, or not ready, do not listen: one is enough."""
        return not self.stopping.is_set() and any(
            worker.state.get("ready", False) for worker in self._workers
        )


def _path() -> str:
    """The path of imports of the workers: this checkout before all else."""
    return os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH"))))
