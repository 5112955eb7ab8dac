"""Supervisor of several worker processes on one port.

Each worker is a complete server (`service.server`) in its own process. The supervisor binds the
port, handles signals, restarts workers that have died, and serves metrics and probes for all of
them. It accepts the connections to the gateway, and with the http2 transport those to the gRPC
port, and hands them to the workers round robin: SO_REUSEPORT balances by a hash, and the few
long-lived connections that gRPC clients open may all land on one worker. With grpcio, which cannot
adopt an accepted socket, the workers share the gRPC port by SO_REUSEPORT. The supervisor imports
neither onnxruntime nor grpc.
"""

import asyncio
import logging
import socket
from collections.abc import Coroutine, Sequence
from typing import Any

from common.cpus import usable_cpus
from service.announce import announce
from service.errors import StartError
from service.hosts import host_and_port
from service.net.addresses import exclusive_sockets, shared_sockets
from service.net.descriptors import raise_limit
from service.observe import logs
from service.observe.http import HttpServer
from service.observe.merge import merge
from service.observe.supervision import SupervisorMetrics
from service.settings import Settings
from service.signals import Signals
from service.stop import EXIT_SECONDS, exit_after, grace_seconds, stop_seconds
from service.workers.control import WorkerConfig
from service.workers.door import Door
from service.workers.process import GATEWAY, GRPC, Worker

_log = logging.getLogger(__name__)

# The port opens once all workers listen, or this long after the first one does.
_GATHER_SECONDS = 5.0
# Timeouts of requests to a worker.
_METRICS_SECONDS = 2.0
_RELOAD_SECONDS = 120.0


def run(settings: Settings, signals: Signals) -> None:
    """Serves until SIGTERM or SIGINT, then stops the workers; a second signal cuts the stop short.

    SIGHUP makes every worker reload its models.

    Args:
        settings: Settings of the server.
        signals: The handlers of this process's signals.

    Raises:
        StartError: A port is taken, or the workers cannot start with these settings.
    """
    logs.configure(settings.log_level, settings.log_format)
    raise_limit()
    asyncio.run(_Supervisor(settings).run(signals))


class _Supervisor:
    """The supervisor's life: bind, start the workers, open the port, watch, stop.

    Attributes:
        stopping: Set at the first SIGTERM or SIGINT, or when the workers refuse to start.
        doors: Names of the ports whose connections the supervisor accepts and hands to the
            workers.
    """

    def __init__(self, settings: Settings):
        self.stopping = asyncio.Event()
        doors = {GRPC: settings.transport == "http2", GATEWAY: settings.gateway_port != "off"}
        self.doors: Sequence[str] = [name for name, handed_off in doors.items() if handed_off]
        self._settings = settings
        self._sockets: dict[str, list[socket.socket]] = {}
        self._doors: dict[str, Door] = {}
        self._workers: list[Worker] = []
        self._metrics = SupervisorMetrics(range(settings.workers))
        self._refusal = ""
        self._ever_listened = False
        self._open = False
        self._draining = False
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, signals: Signals) -> None:
        """Runs until all workers have ended.

        Args:
            signals: The handlers of this process's signals.

        Raises:
            StartError: A port is taken, or the workers cannot start with these settings.
        """
        self._loop = asyncio.get_running_loop()
        with signals.delivered(self._on_stop_signal, lambda: self._spawn(self.reload())):
            await self._serve()
        if self._refusal:
            raise StartError(self._refusal)
        _log.info("stopped")

    async def _serve(self) -> None:
        """Opens the ports, runs the workers, and closes the ports once all have ended."""
        settings = self._settings
        bind = exclusive_sockets if GRPC in self.doors else shared_sockets
        http = None
        try:
            self._sockets[GRPC] = bind(settings.host, settings.grpc_port)
            port = self._sockets[GRPC][0].getsockname()[1]
            self._announcements = [f"listening on {host_and_port(settings.host, port)}"]
            if settings.http_port != "off":
                http = HttpServer(
                    settings.host, settings.http_port, self._exposition, self._live, self._ready
                )
                where = host_and_port(settings.host, http.port)
                self._announcements.append(f"metrics on http://{where}/metrics")
                http.start()
            if settings.gateway_port != "off":
                sockets = exclusive_sockets(settings.host, settings.gateway_port, "--gateway-port")
                self._sockets[GATEWAY] = sockets
                scheme = "http" if settings.tls_cert is None else "https"
                where = host_and_port(settings.host, sockets[0].getsockname()[1])
                self._announcements.append(f"gateway on {scheme}://{where}")
            addresses = [sock.getsockname()[0] for sock in self._sockets[GRPC]]
            await self._run_workers(port, addresses)
        finally:
            if http is not None:
                http.close()
            for sockets in self._sockets.values():
                for sock in sockets:
                    sock.close()

    async def _run_workers(self, port: int, addresses: Sequence[str]) -> None:
        settings = self._settings
        overrides = {
            "grpc_port": port,
            # Metrics and probes of a worker go through the supervisor.
            "http_port": "off",
            "threads": settings.threads or max(1, usable_cpus() // settings.workers),
            "max_queue_bytes": settings.queue_bytes,
            "lame_duck_seconds": settings.lame_duck,
        }
        config = WorkerConfig(
            addresses=tuple(addresses), settings=settings.model_copy(update=overrides)
        )
        self._workers = [Worker(number, config, self) for number in range(settings.workers)]
        self._doors = {
            name: Door(self._sockets[name], [worker.at(name) for worker in self._workers])
            for name in self.doors
        }
        try:
            await asyncio.gather(*(worker.keep_running() for worker in self._workers))
        finally:
            self._kill()

    # Called by the workers.

    def state_changed(self) -> None:
        """Opens the port once all workers listen, or a few seconds after the first one does."""
        listening = [worker.state.get("listening", False) for worker in self._workers]
        if any(listening) and not self._ever_listened:
            self._ever_listened = True
            self._loop.call_later(_GATHER_SECONDS, self._open_port)
        if all(listening):
            self._open_port()
        for name in self._doors:
            self.deal_waiting(name)

    def restarted(self, number: int) -> None:
        """Counts the restart of a worker."""
        self._metrics.restarted(number)

    def start_refused(self, number: int, reason: str) -> None:
        """Stops the server if no worker has ever listened, else only logs the reason."""
        if self._ever_listened:
            _log.error("worker %d: %s", number, reason)
            return
        self._refuse(reason)

    def deal(self, door: str, connection: socket.socket) -> None:
        """Hands a connection of a port to a worker that can take it."""
        self._doors[door].deal(connection)

    def deal_waiting(self, door: str) -> None:
        """Hands off connections of a port that no worker could take before."""
        self._doors[door].deal_waiting()

    async def exposition(self, accept: str) -> tuple[bytes, str]:
        """Returns the metrics page of the whole server and its content type."""
        return merge(await self._pages(), accept)

    async def reload(self, skip: Worker | None = None) -> None:
        """Makes all workers except `skip` reload their models; returns when they have answered."""
        others = (worker for worker in self._workers if worker is not skip)
        await asyncio.gather(*(worker.request("reload", _RELOAD_SECONDS) for worker in others))

    # The ports.

    def _open_port(self) -> None:
        """Begins to accept connections and prints the addresses, on the first call only."""
        if self._open or self.stopping.is_set():
            return
        self._open = True
        try:
            for door in self._doors.values():
                door.open()
        except StartError as error:
            self._refuse(str(error))
            return
        announce(*self._announcements)

    # The stop.

    def _on_stop_signal(self, interactive: bool) -> None:
        if not self.stopping.is_set():
            lame_duck = 0.0 if interactive else self._settings.lame_duck
            self._stop(lame_duck)
            exit_after(grace_seconds(lame_duck, self._settings.drain_seconds))
            return
        for worker in self._workers:
            worker.notify("force_stop")
        self._drain()
        self._loop.call_later(EXIT_SECONDS, self._kill)

    def _refuse(self, reason: str) -> None:
        self._refusal = self._refusal or reason
        self._stop(0.0)

    def _stop(self, lame_duck: float) -> None:
        """Begins the workers' lame duck; kills workers that exceed the limit of the whole stop."""
        self.stopping.set()
        for worker in self._workers:
            worker.notify("stop")
        if lame_duck and self._open:
            self._loop.call_later(lame_duck, self._drain)
        else:
            self._drain()
        self._loop.call_later(stop_seconds(lame_duck, self._settings.drain_seconds), self._kill)

    def _drain(self) -> None:
        """Ends the lame duck: closes the port, then makes the workers drain."""
        if not self._draining:
            self._draining = True
            self._spawn(self._close_port_and_drain())

    async def _close_port_and_drain(self) -> None:
        await asyncio.gather(*(door.close() for door in self._doors.values()))
        for sock in self._sockets[GRPC]:
            sock.close()
        for worker in self._workers:
            worker.notify("drain")

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Called by the threads of the HTTP port.

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        page = asyncio.run_coroutine_threadsafe(self.exposition(accept), self._loop)
        return page.result(2 * _METRICS_SECONDS)

    async def _pages(self) -> dict[str, str]:
        """Returns the metrics pages (text format): the supervisor's, and the workers' by number."""
        pages = await asyncio.gather(
            *(worker.request("metrics", _METRICS_SECONDS) for worker in self._workers)
        )
        of_workers = {
            str(worker.number): page
            for worker, page in zip(self._workers, pages, strict=True)
            if page is not None
        }
        return {**of_workers, "supervisor": self._metrics.page()}

    def _live(self) -> bool:
        """Whether every worker still has its device, or has no process at present."""
        return all(worker.state.get("live", True) for worker in self._workers)

    def _ready(self) -> bool:
        """Returns whether any worker is ready: one is enough, since others get no connections."""
        return not self.stopping.is_set() and any(worker.ready for worker in self._workers)
