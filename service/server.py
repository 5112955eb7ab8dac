"""The life of a server: start, load, serve, drain, exit."""

import asyncio
import logging
import signal
import sys

from service.engine import Engine
from service.runtime import resolve_device
from service.servicer import Servicer
from service.settings import Settings
from service.store import Models, load_models
from service.transport import GrpcTransport

_log = logging.getLogger(__name__)


def run(settings: Settings) -> None:
    """Serves until SIGTERM or SIGINT, then drains.

    Raises:
        StartError: The device, the port or the models folder cannot be had.
    """
    logging.basicConfig(
        level=settings.log_level.upper(),
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
    )
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stop.set)
    device = resolve_device(settings.device)
    if settings.device == "auto":
        _log.info("device auto: using %s", device)
    models = Models()
    engine = Engine()
    transport = GrpcTransport(Servicer(engine, lambda: models, settings), settings)
    await transport.start()
    # Answers health from here on, NOT_SERVING until the golden rows have been replayed.
    print(f"latentserve: listening on {settings.host}:{transport.port}", flush=True)
    try:
        loading = loop.run_in_executor(
            None, load_models, settings.models, device, settings.threads, settings.default_model
        )
        stopping = loop.create_task(stop.wait())
        await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
        if not stop.is_set():
            models = await loading
            await transport.show(models)
            if models.loaded:
                _log.info("serving %s, default %s", ", ".join(models.loaded), models.default)
            else:
                _log.error("serving nothing: no model could be loaded")
            await stop.wait()
            _log.info("draining, at most %g s", settings.drain_seconds)
    finally:
        await transport.drain(settings.drain_seconds)
        engine.close()
    _log.info("stopped")
