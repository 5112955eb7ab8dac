"""The life of a server: start, load, serve, drain, exit."""

import asyncio
import logging
import signal
import sys

from bundle import Bundle
from service.engine import Engine
from service.limits import max_rows
from service.model import Model, load_model
from service.runtime import Device, resolve_device
from service.servicer import Servicer
from service.settings import Settings
from service.store import Models, load_models
from service.transport import GrpcTransport

_log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains; a second one cuts the drain short.

    Raises:
        StartError: The device, the port or the models folder cannot be had.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    asyncio.run(_Server(settings).run())


class _Server:
    """One server, from start to exit."""

    def __init__(self, settings: Settings):
        self._settings = settings
        self._models = Models()
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()

    async def run(self) -> None:
        settings = self._settings
        loop = asyncio.get_running_loop()
        for name in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(name, self._on_signal)
        device = resolve_device(settings.device)
        if settings.device == "auto":
            _log.info("device auto: using %s", device)
        engine = Engine()
        transport = GrpcTransport(Servicer(engine, lambda: self._models, settings), settings)
        await transport.start()
        # Answers health from here on, NOT_SERVING until the golden rows have been replayed.
        print(f"latentserve: listening on {settings.host}:{transport.port}", flush=True)
        try:
            await self._load(device)
            await transport.show(self._models)
            await self._stop.wait()
            _log.info("draining, at most %g s", settings.drain_seconds)
        finally:
            await transport.drain(settings.drain_seconds, self._hurry)
            engine.close()
        _log.info("stopped")

    async def _load(self, device: Device) -> None:
        settings = self._settings

        def load(bundle: Bundle) -> Model:
            max_rows(bundle.manifest, settings.max_rows, settings.max_message_bytes)
            return load_model(bundle, device, settings.threads)

        # In a thread: health has to answer meanwhile.
        self._models = await asyncio.to_thread(
            load_models, settings.models, load, settings.default_model, self._stop.is_set
        )
        if self._stop.is_set():
            return
        if self._models.loaded:
            names = ", ".join(self._models.loaded)
            _log.info("serving %s, default %s", names, self._models.default or "not loaded")
        else:
            _log.error("serving nothing: no model could be loaded")

    def _on_signal(self) -> None:
        (self._hurry if self._stop.is_set() else self._stop).set()
