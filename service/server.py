"""The life of a server: start, load, serve, reload, drain, exit."""

import asyncio
import functools
import logging
import signal
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from bundle import Bundle
from common.cpus import usable_cpus
from service.api.admin import AdminServicer, Reload
from service.api.servicer import Servicer
from service.engine.admission import Admission
from service.engine.batcher import ALONE_SECONDS, INLINE_SECONDS
from service.engine.engine import Engine
from service.errors import StartError, Unauthenticated
from service.models.limits import max_rows
from service.models.model import Model, load_model
from service.models.onnx import Device, Graph, device_problem, resolve_device
from service.models.repository import Models, Repository
from service.observe import logs
from service.observe.http import HttpServer
from service.observe.merge import TEXT
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.observe.tracing import Tracing
from service.settings import Settings
from service.transport.http2_transport import Http2Transport
from service.transport.tls import TlsFiles
from service.transport.tokens import TokenFile
from service.workers import memory
from service.workers.control import Link, LinkLost, Place

try:
    import uvloop
except ImportError:  # there is none for Windows
    _new_loop = asyncio.new_event_loop
else:
    _new_loop = uvloop.new_event_loop

_log = logging.getLogger(__name__)


def run(settings: Settings, place: Place | None = None) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second one cuts the drain short.

    SIGHUP makes it look through the models folder again.

    Args:
        settings: What to serve, and how.
        place: That of a worker among others; None for a server alone.

    Raises:
        StartError: The device, a port, a certificate, the token or the models folder
            cannot be had.
    """
    worker = None if place is None else place.number
    logs.configure(settings.log_level, settings.log_format, worker)
    memory.one_heap()
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(_Server(settings, place).run())


class _Server:
    """One server, from start to exit."""

    def __init__(self, settings: Settings, place: Place | None):
        self._settings = settings
        self._place = place
        self._link: Link | None = None
        self._models = Models()
        self._listening = False
        self._device_lost = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._reloading = asyncio.Lock()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._on_signal)
        device = resolve_device(settings.device)
        if settings.device == "auto":
            _log.info("device auto: using %s", device)
        repository = Repository(
            settings.models,
            functools.partial(self._load, device),
            settings.default_model,
            settings.versions,
            self._stop.is_set,
        )
        metrics = Metrics()
        self._telemetry = Telemetry(
            metrics, Tracing.start(settings.otlp_endpoint), self._on_failure
        )
        self._admission = Admission(settings.max_queue_rows, settings.max_queue_bytes)
        metrics.watch_queue(lambda: (self._admission.rows, self._admission.size))
        # On a CPU each batch has one thread: two batches on a core each cost less than two
        # cores on one batch after the other (docs/performance.md).
        workers = (settings.threads or usable_cpus()) if device.kind == "cpu" else 1
        # One thread of one core, or of a worker's share of them.
        alone = workers == 1 and (self._place is not None or usable_cpus() == 1)
        self._engine = Engine(
            self._admission,
            self._telemetry,
            workers,
            settings.batch_window_seconds,
            ALONE_SECONDS if alone else INLINE_SECONDS,
        )
        reload = functools.partial(self._reload, repository)
        self._transport = _transport(settings)(
            Servicer(self._engine, lambda: self._models, settings),
            AdminServicer(functools.partial(self._reload_all, repository))
            if settings.admin
            else None,
            settings,
            authenticate=_authentication(settings),
            tls=_tls(settings),
            telemetry=self._telemetry,
            shared=None if self._place is None else self._place.shared,
        )
        http = None
        if settings.http_port != "off":
            http = HttpServer(
                settings.host, settings.http_port, metrics.exposition, self._live, self._ready
            )
            http.start()
        loop.add_signal_handler(signal.SIGHUP, lambda: self._spawn(self._on_hangup(reload)))
        try:
            if self._place is None:
                await self._transport.start()
                # Answers health from here on, NOT_SERVING until the golden rows have been
                # replayed.
                where = f"{settings.host}:{self._transport.port}"
                print(f"latentserve: listening on {where}", flush=True)
                if http is not None:
                    where = f"http://{settings.host}:{http.port}/metrics"
                    print(f"latentserve: metrics on {where}", flush=True)
                await self._first_load(repository)
            else:
                self._link = await self._linked(self._place, metrics, reload)
                # Until it can answer, the callers go to the others.
                await self._first_load(repository)
                if not self._stop.is_set():
                    await self._transport.start()
                    self._listening = True
                    self._tell_state()
            await self._stop.wait()
            self._tell_state()
            _log.info("draining, at most %g s", settings.drain_seconds)
        finally:
            await self._transport.drain(settings.drain_seconds, self._hurry)
            self._engine.close()
            self._telemetry.close()
            if http is not None:
                http.close()
        _log.info("stopped")

    def _load(self, device: Device, bundle: Bundle) -> Model:
        settings = self._settings
        max_rows(bundle.manifest, settings.max_rows, settings.max_message_bytes)
        return load_model(bundle, device, threads=1)

    async def _first_load(self, repository: Repository) -> None:
        _, models = await self._reload(repository)
        if self._stop.is_set():
            return
        memory.keep()
        if models.loaded:
            names = ", ".join(models.loaded)
            _log.info("serving %s, default %s", names, models.default or "not loaded")
        else:
            _log.error("serving nothing: no model could be loaded")

    async def _reload(self, repository: Repository) -> tuple[Models, Models]:
        """Loads what is wanted and new, and swaps one reference."""
        async with self._reloading:
            before = self._models
            # In a thread: calls and health have to be answered meanwhile.
            models = await asyncio.to_thread(repository.models, before)
            if self._stop.is_set():
                return before, before
            self._models = models
            self._telemetry.serving(models)
            await self._transport.show(models, well=not self._device_lost)
            self._tell_state()
            return before, models

    async def _reload_all(self, repository: Repository) -> tuple[Models, Models]:
        """Reloads, and lets the other workers reload."""
        result = await self._reload(repository)
        if self._link is not None:
            # Not under the lock: another worker may be asking the same of this one.
            with suppress(LinkLost):
                await self._link.ask("reload")
        return result

    async def _on_hangup(self, reload: Reload) -> None:
        _log.info("looking through %s again", self._settings.models)
        try:
            before, after = await reload()
        except StartError as error:
            _log.error("nothing changes: %s", error)
            return
        added = [model.identity for model in after.beside(before)]
        removed = [model.identity for model in before.beside(after)]
        _log.info(
            "reloaded: added %s, removed %s", ", ".join(added) or "-", ", ".join(removed) or "-"
        )

    def _on_failure(self, graph: Graph, error: Exception) -> None:
        _log.error("%s on %s failed: %s", graph.name, graph.device, error)
        if not self._device_lost:
            self._spawn(self._look_at(graph.device))

    async def _look_at(self, device: Device) -> None:
        """A device that has died heals only by a restart: readiness and liveness say so."""
        problem = await asyncio.to_thread(device_problem, device)
        if problem is not None and not self._device_lost:
            self._device_lost = True
            _log.critical("%s is lost, wanted a restart: %s", device, problem)
            await self._transport.show(self._models, well=False)
            self._tell_state()

    def _live(self) -> bool:
        return not self._device_lost

    def _ready(self) -> bool:
        return bool(self._models.default) and not self._device_lost and not self._stop.is_set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _on_signal(self) -> None:
        if self._stop.is_set() and self._place is None:
            self._hurry.set()
        self._stop.set()

    # As a worker.

    async def _linked(self, place: Place, metrics: Metrics, reload: Reload) -> Link:
        """Begins to do what the supervisor says; where that is gone, to drain."""

        async def stop(_: object) -> None:
            self._stop.set()

        async def hurry(_: object) -> None:
            self._stop.set()
            self._hurry.set()

        async def page(_: object) -> str:
            text, _type = await asyncio.to_thread(metrics.exposition, TEXT)
            return text.decode()

        async def talk() -> None:
            await link.talk()
            self._stop.set()

        link = await Link.over(
            place.end,
            {
                "stop": stop,
                "hurry": hurry,
                "metrics": page,
                "reload": lambda _: self._on_hangup(reload),
            },
        )
        self._spawn(talk())
        return link

    def _tell_state(self) -> None:
        if self._link is not None:
            ready = self._listening and self._ready()
            state = {"listening": self._listening, "live": self._live(), "ready": ready}
            self._link.tell("state", state)


def _transport(settings: Settings) -> Any:
    """The class of the transport; each is imported only where it is used."""
    if settings.transport == "http2":
        return Http2Transport
    from service.transport.grpcio_transport import GrpcioTransport

    return GrpcioTransport


def _authentication(settings: Settings) -> Callable[[str | None], None]:
    if settings.token_file is None:
        return lambda _authorization: None
    tokens = TokenFile(settings.token_file)

    def check(authorization: str | None) -> None:
        if not tokens.accepts(authorization):
            what = "a wrong token" if authorization else "no token"
            raise Unauthenticated(f"authorization: got {what}, wanted 'Bearer TOKEN'")

    return check


def _tls(settings: Settings) -> TlsFiles | None:
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None and key is None and settings.tls_client_ca is None:
        return None
    if certificate is None or key is None:
        raise StartError("tls-cert and tls-key: got only one of them, wanted both or neither")
    return TlsFiles(certificate, key, settings.tls_client_ca)
