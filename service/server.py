"""One server process: start, load models, serve, reload, drain, exit."""

import asyncio
import functools
import logging
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from service import parts
from service.announce import announce
from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.errors import StartError
from service.hosts import host_and_port
from service.models.onnx import Device, Graph, device_problem, resolve_device
from service.models.repository import Models, Repository
from service.net.descriptors import raise_limit
from service.observe import logs
from service.observe.drift import ReconstructionErrors
from service.observe.http import HttpServer
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.observe.tracing import Tracing
from service.polling import poll
from service.settings import Settings
from service.signals import Signals
from service.stop import EXIT_SECONDS, Stop, exit_after, stop_seconds
from service.workers import memory
from service.workers.agent import WorkerAgent
from service.workers.control import WorkerContext

if TYPE_CHECKING:
    from service.gateway.gateway import Gateway

try:
    import uvloop
except ImportError:  # uvloop does not support Windows
    _new_loop = asyncio.new_event_loop
else:
    _new_loop = uvloop.new_event_loop

_log = logging.getLogger(__name__)

# The supervisor closes the port first and then ends its workers' lame duck, so that they answer all
# connections handed off before. A worker ends its own lame duck this much later, if the supervisor
# has not.
_SUPERVISOR_SECONDS = 0.5


def run(settings: Settings, signals: Signals, worker: WorkerContext | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then stops gracefully; a second signal cuts the stop short.

    SIGHUP reloads the models.

    Args:
        settings: Settings of the server.
        signals: The handlers of this process's signals.
        worker: Number and sockets of this worker; None for a single-process server.

    Raises:
        StartError: The device, a port, a certificate, the token file or the models folder is
            not usable.
    """
    number = None if worker is None else worker.number
    logs.configure(settings.log_level, settings.log_format, number)
    memory.use_one_arena()
    raise_limit()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_Server(settings, worker).run(signals))


class _Server:
    """The server of this process, which may be one of several workers."""

    def __init__(self, settings: Settings, worker: WorkerContext | None):
        # The defaults are resolved once, since the memory that may be used can change.
        resolved = {
            "max_queue_bytes": settings.queue_bytes,
            "max_compute_bytes": settings.compute_bytes,
        }
        self._settings = settings.model_copy(update=resolved)
        self._worker = worker
        self._agent: WorkerAgent | None = None
        self._http: HttpServer | None = None
        self._gateway: Gateway | None = None
        self._models = Models()
        self._listening = False
        self._loading = False
        self._device_lost = False
        self._stop = Stop()
        self._reload_lock = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self, signals: Signals) -> None:
        """Runs the server from its start to its exit.

        Args:
            signals: The handlers of this process's signals.
        """
        self._assemble()
        with signals.delivered(self._on_stop_signal, lambda: self._spawn(self._reload_and_log())):
            await self._serve()
        _log.info("stopped")

    async def _serve(self) -> None:
        """Serves, from the start of the HTTP port to the end of the drain."""
        if self._http is not None:
            self._http.start()
        try:
            if self._worker is not None:
                await self._connect_to_supervisor(self._worker)
            await self._start()
            await self._stop.begun.wait()
            if self._listening:
                await self._be_lame_duck()
            _log.info("draining, at most %g s", self._settings.drain_seconds)
        finally:
            await self._drain()
            self._telemetry.stop_measuring()
            self._engine.close()
            self._telemetry.close()
            if self._http is not None:
                self._http.close()

    async def _drain(self) -> None:
        """Stops all ports at once: they share the time that calls in flight have."""
        seconds, forced = self._settings.drain_seconds, self._stop.forced
        drains = [self._transport.drain(seconds, forced)]
        if self._gateway is not None:
            drains.append(self._gateway.drain(seconds, forced))
        await asyncio.gather(*drains)

    # Start.

    def _assemble(self) -> None:
        """Builds the repository, metrics, engine, transport and HTTP server."""
        settings = self._settings
        device = resolve_device(settings.device)
        if settings.device == "auto":
            _log.info("device auto: using %s", device)
        self._repository = Repository(
            parts.source(settings, self._stop.begun.is_set),
            functools.partial(parts.model, settings, device),
            settings.default_model,
            settings.versions,
            settings.route,
            self._stop.begun.is_set,
            parts.verification(settings),
        )
        self._metrics = Metrics()
        errors = ReconstructionErrors(settings.drift_share) if settings.drift_share else None
        if errors is not None:
            self._metrics.add(errors)
        self._telemetry = Telemetry(
            self._metrics, Tracing.start(settings.otlp_endpoint), self._on_graph_failure, errors
        )
        admission = parts.admission(settings)
        self._metrics.watch_queue(lambda: (admission.rows, admission.size))
        threads = parts.compute_threads(settings, device)
        self._metrics.limits(threads, settings.max_queue_rows, settings.queue_bytes)
        is_worker = self._worker is not None
        self._engine = parts.engine(
            settings, admission, self._telemetry, threads, is_worker=is_worker
        )
        tls = parts.tls_files(settings)
        if tls is not None:
            self._metrics.watch_tls(lambda: tls.expires_at)
        servicer = Servicer(self._engine, lambda: self._models, settings)
        authenticate = parts.authentication(settings)
        self._transport = parts.transport(settings)(
            servicer,
            AdminServicer(self._reload_everywhere) if settings.admin else None,
            settings,
            authenticate=authenticate,
            capacity=admission,
            tls=tls,
            telemetry=self._telemetry,
            shared=None if self._worker is None else self._worker.shared,
        )
        if settings.gateway_port != "off":
            # Imported only if it is used.
            from service.gateway.gateway import Gateway

            self._gateway = Gateway(
                servicer,
                settings,
                authenticate=authenticate,
                capacity=admission,
                tls=parts.tls_files(settings, "http/1.1"),
                telemetry=self._telemetry,
                state=parts.State(self._live, self._ready, lambda: self._models),
                metrics=self._exposition,
                grpc_port=self._transport.port,
                channel=None if self._worker is None else self._worker.gateway,
            )
        if settings.http_port != "off":
            self._http = HttpServer(
                settings.host, settings.http_port, self._metrics.exposition, self._live, self._ready
            )

    async def _exposition(self, accept: str) -> tuple[bytes, str]:
        if self._agent is not None:
            return await self._agent.exposition(accept)
        return await asyncio.to_thread(self._metrics.exposition, accept)

    async def _connect_to_supervisor(self, worker: WorkerContext) -> None:
        agent = WorkerAgent(self._stop, self._metrics.exposition, self._reload_and_log)
        await agent.connect(worker.control)
        self._agent = agent

    async def _start(self) -> None:
        """Loads the models, then listens: until then, clients connect to other servers."""
        await self._first_load()
        if self._stop.begun.is_set():
            return
        await self._transport.start()
        if self._gateway is not None:
            await self._gateway.start()
        self._listening = True
        self._report_state()
        if self._settings.poll_seconds:
            self._spawn(
                poll(
                    self._settings.poll_seconds,
                    self._stop.begun,
                    self._changed,
                    self._reload_and_log,
                    self._metrics.watch_polls(),
                )
            )
        if self._worker is None:
            host, lines = self._settings.host, []
            lines.append(f"listening on {host_and_port(host, self._transport.port)}")
            if self._http is not None:
                where = host_and_port(host, self._http.port)
                lines.append(f"metrics on http://{where}/metrics")
            if self._gateway is not None:
                scheme = "http" if self._settings.tls_cert is None else "https"
                lines.append(f"gateway on {scheme}://{host_and_port(host, self._gateway.port)}")
            announce(*lines)

    async def _first_load(self) -> None:
        _, models = await self._reload()
        if self._stop.begun.is_set():
            return
        memory.freeze_startup_objects()
        if models.loaded:
            names = ", ".join(models.loaded)
            _log.info("serving %s, default %s", names, models.default or "not loaded")
        else:
            _log.error("serving nothing: no model could be loaded")

    # Reload.

    async def _reload(self) -> tuple[Models, Models]:
        """Loads the selected models that are not loaded yet, then swaps all models at once.

        Returns:
            The models served before, and the models served now.

        Raises:
            StartError: The models folder cannot be read, or lacks the default model, or no model
                would be left.
        """
        async with self._reload_lock:
            before = self._models
            # In a thread, so that the event loop keeps answering calls and health checks.
            self._loading = True
            self._report_state()
            try:
                models = await asyncio.to_thread(self._repository.models, before)
            finally:
                self._loading = False
                self._report_state()
            if self._stop.begun.is_set():
                return before, before
            self._models = models
            self._telemetry.serving(models)
            await self._transport.show(models, device_ok=not self._device_lost)
            self._report_state()
            return before, models

    async def _changed(self) -> bool:
        """Whether there is anything to reload."""
        async with self._reload_lock:
            return await asyncio.to_thread(self._repository.source.changed)

    async def _reload_everywhere(self) -> tuple[Models, Models]:
        """Reloads this process's models, then those of the other workers."""
        result = await self._reload()
        if self._agent is not None:
            # Not under `_reload_lock`: two workers that make each other reload would deadlock.
            await self._agent.reload_others()
        return result

    async def _reload_and_log(self) -> None:
        _log.info("reloading models from %s", self._repository.source.where)
        try:
            before, after = await self._reload()
        except StartError as error:
            _log.error("reload failed, nothing changes: %s", error)
            return
        added = [model.identity for model in after.difference(before)]
        removed = [model.identity for model in before.difference(after)]
        _log.info(
            "reloaded: added %s, removed %s", ", ".join(added) or "-", ", ".join(removed) or "-"
        )

    # Health.

    def _on_graph_failure(self, graph: Graph, error: Exception) -> None:
        _log.error("%s on %s failed: %s", graph.name, graph.device, error)
        if not self._device_lost:
            self._spawn(self._probe(graph.device))

    async def _probe(self, device: Device) -> None:
        """Tests a device after a failed batch; if lost, readiness and liveness fail for good."""
        problem = await asyncio.to_thread(device_problem, device)
        if problem is not None and not self._device_lost:
            self._device_lost = True
            _log.critical("%s is lost, wanted a restart: %s", device, problem)
            await self._transport.show(self._models, device_ok=False)
            self._report_state()

    def _live(self) -> bool:
        return not self._device_lost

    def _ready(self) -> bool:
        stopping = self._stop.begun.is_set()
        return (
            self._listening and bool(self._models.default) and not (self._device_lost or stopping)
        )

    def _report_state(self) -> None:
        if self._agent is not None:
            live, ready = self._live(), self._ready()
            self._agent.report(
                listening=self._listening, live=live, ready=ready, loading=self._loading
            )

    # The stop.

    def _on_stop_signal(self, interactive: bool) -> None:
        if self._worker is not None:
            # Only the supervisor cuts a worker's stop short: a signal to the whole process group
            # and the supervisor's `stop` are one stop, not two.
            self._stop.begin()
        elif self._stop.begun.is_set():
            self._stop.force()
            exit_after(EXIT_SECONDS)
        else:
            lame_duck = 0.0 if interactive else self._settings.lame_duck
            exit_after(stop_seconds(lame_duck, self._settings.drain_seconds))
            if not lame_duck:
                self._stop.drain()
            self._stop.begin()

    async def _be_lame_duck(self) -> None:
        """Keeps answering calls during the lame duck, while health is NOT_SERVING."""
        self._transport.lame_duck()
        if self._gateway is not None:
            self._gateway.lame_duck()
        self._report_state()
        seconds = self._settings.lame_duck
        if self._worker is not None:
            seconds += _SUPERVISOR_SECONDS
        if not self._stop.draining.is_set():
            _log.info("lame duck for %g s: health is NOT_SERVING, calls are answered", seconds)
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._stop.draining.wait()
        self._listening = False
        self._report_state()

    def _spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
