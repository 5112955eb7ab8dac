"""Supervisor of several worker processes on one port.

Each worker is a complete server (`service.server`) in its own process. The supervisor binds the
port, handles signals, restarts workers that have died, and serves metrics and probes for all of
them. With the http2 transport it accepts the connections and hands them to the workers round
robin: SO_REUSEPORT balances by a hash, and the few long-lived connections that gRPC clients
open may all land on one worker. With grpcio, which cannot adopt an accepted socket, the workers
share the port by SO_REUSEPORT. The supervisor imports neither onnxruntime nor grpc.
"""

import asyncio
import logging
import signal
import socket
from collections import deque
from collections.abc import Coroutine, Sequence
from typing import Any

from common.cpus import usable_cpus
from service.errors import StartError
from service.observe import logs
from service.observe.http import HttpServer
from service.observe.merge import merge
from service.settings import Settings
from service.transport.addresses import (
    BACKLOG,
    accept_from,
    exclusive_sockets,
    shared_sockets,
)
from service.workers.control import EXIT_SECONDS, WorkerConfig
from service.workers.process import Worker

_log = logging.getLogger(__name__)

# The port opens once all workers listen, or this long after the first one does.
_GATHER_SECONDS = 5.0
# Timeouts of requests to a worker.
_METRICS_SECONDS = 2.0
_RELOAD_SECONDS = 120.0


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains the workers; a second signal cuts that short.

    SIGHUP makes every worker reload its models.

    Raises:
        StartError: A port is taken, or the workers cannot start with these settings.
    """
    logs.configure(settings.log_level, settings.log_format)
    asyncio.run(_Supervisor(settings).run())


class _Supervisor:
    """Binds the port, runs the workers, opens the port once they listen, and drains them.

    Attributes:
        stopping: Set at the first SIGTERM or SIGINT, or when the workers refuse to start.
        hands_off: Whether the supervisor accepts the connections and hands them to the workers.
    """

    def __init__(self, settings: Settings):
        self.stopping = asyncio.Event()
        self.hands_off = settings.transport == "http2"
        self._settings = settings
        self._sockets: list[socket.socket] = []
        self._accepting: list[asyncio.Task[None]] = []
        self._workers: list[Worker] = []
        self._round_robin: deque[Worker] = deque()
        self._refusal = ""
        self._ever_listened = False
        self._open = False
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Runs until all workers have ended.

        Raises:
            StartError: A port is taken, or the workers cannot start with these settings.
        """
        settings = self._settings
        self._loop = loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._on_stop_signal)
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self.reload()))
        bind = exclusive_sockets if self.hands_off else shared_sockets
        self._sockets = bind(settings.host, settings.grpc_port)
        port = self._sockets[0].getsockname()[1]
        self._announcements = [f"listening on {settings.host}:{port}"]
        http = None
        try:
            if settings.http_port != "off":
                http = HttpServer(
                    settings.host, settings.http_port, self._exposition, self._live, self._ready
                )
                self._announcements.append(f"metrics on http://{settings.host}:{http.port}/metrics")
                http.start()
            await self._run_workers(port, [sock.getsockname()[0] for sock in self._sockets])
        finally:
            if http is not None:
                http.close()
            for sock in self._sockets:
                sock.close()
        if self._refusal:
            raise StartError(self._refusal)
        _log.info("stopped")

    async def _run_workers(self, port: int, addresses: Sequence[str]) -> None:
        settings = self._settings
        overrides = {
            "grpc_port": port,
            # Metrics and probes of a worker go through the supervisor.
            "http_port": "off",
            "threads": settings.threads or max(1, usable_cpus() // settings.workers),
            "max_queue_bytes": settings.queue_bytes,
            "workers": 1,
        }
        config = WorkerConfig(
            addresses=tuple(addresses), settings=settings.model_copy(update=overrides)
        )
        self._workers = [Worker(number, config, self) for number in range(settings.workers)]
        self._round_robin.extend(self._workers)
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

    def start_refused(self, number: int, reason: str) -> None:
        """Stops the server if no worker has ever listened, else only logs the reason."""
        if self._ever_listened:
            _log.error("worker %d: %s", number, reason)
            return
        self._refusal = self._refusal or reason
        self._stop()

    def assign(self, connection: socket.socket) -> None:
        """Hands a connection to the next worker (round robin) that can take it, or closes it."""
        for _ in self._workers:
            worker = self._round_robin[0]
            self._round_robin.rotate(-1)
            if worker.offer(connection):
                return
        connection.close()
        _log.warning("connection: refused, no worker is listening")

    async def reload(self, skip: Worker | None = None) -> None:
        """Makes all workers except `skip` reload their models; returns when they have answered."""
        others = (worker for worker in self._workers if worker is not skip)
        await asyncio.gather(*(worker.request("reload", _RELOAD_SECONDS) for worker in others))

    # The port.

    def _open_port(self) -> None:
        """Begins to accept connections and prints the addresses, on the first call only."""
        if self._open or self.stopping.is_set():
            return
        self._open = True
        if self.hands_off:
            for sock in self._sockets:
                sock.listen(BACKLOG)
                self._accepting.append(asyncio.create_task(accept_from(sock, self.assign)))
        for line in self._announcements:
            print(f"latentserve: {line}", flush=True)

    async def _close_port(self) -> None:
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            sock.close()

    # Signals.

    def _on_stop_signal(self) -> None:
        if not self.stopping.is_set():
            self._stop()
            return
        for worker in self._workers:
            worker.notify("force_stop")
        self._loop.call_later(EXIT_SECONDS, self._kill)

    def _stop(self) -> None:
        """Closes the port and drains the workers; later kills those that are still running."""
        self.stopping.set()
        self._spawn(self._close_port())
        for worker in self._workers:
            worker.notify("stop")
        self._loop.call_later(self._settings.drain_seconds + EXIT_SECONDS, self._kill)

    def _kill(self) -> None:
        for worker in self._workers:
            worker.kill()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Called by the threads of the HTTP port.

    def _exposition(self, accept: str) -> tuple[bytes, str]:
        pages = asyncio.run_coroutine_threadsafe(self._pages(), self._loop)
        return merge(pages.result(2 * _METRICS_SECONDS), accept)

    async def _pages(self) -> dict[str, str]:
        """Returns the metrics pages (text format) of the workers that answered, by number."""
        pages = await asyncio.gather(
            *(worker.request("metrics", _METRICS_SECONDS) for worker in self._workers)
        )
        return {
            str(worker.number): page
            for worker, page in zip(self._workers, pages, strict=True)
            if page is not None
        }

    def _live(self) -> bool:
        """Returns whether no worker has lost its device; one without a process counts as live."""
        return all(worker.state.get("live", True) for worker in self._workers)

    def _ready(self) -> bool:
        """Returns whether any worker is ready: one is enough, the others get no connections."""
        return not self.stopping.is_set() and any(
            worker.state.get("ready", False) for worker in self._workers
        )
