"""Models in this process: a client that computes by itself, without a server elsewhere.

Requests and replies take the way they take to any server, over a connection of the loopback
address that only this process can use: so they are checked, batched and computed by the same code,
and results have the same bytes as those of a server on this machine.
"""

import asyncio
import atexit
import functools
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentserve._client.options import Retry
from latentserve.client import Client
from latentserve.errors import LatentserveError
from service import parts
from service.api.servicer import Servicer
from service.errors import StartError, Unauthenticated
from service.models import onnx
from service.models.onnx import resolve_device
from service.models.repository import Models, Repository
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings

_CLOSING_SECONDS = 2.0
_lock = threading.Lock()
_running: dict["InProcess", "_Engine"] = {}


class InProcessClient(Client):
    """A client of the models that this process has loaded.

    Attributes:
        engine: What computes: `device`, and `onnxruntime`, its version.
    """

    engine: dict[str, str]


@dataclass(frozen=True)
class InProcess:
    """Models that each process loads for itself, once; it can be pickled.

    Attributes:
        models: Folder of models; empty for those of the project.
        model: Name of the only model to load; empty for all.
        version: Version of that model; 0 for the highest one.
        device: `cpu`, `cuda` or `cuda:N`.
        threads: Compute threads; 0 for one per CPU.
        timeout: Deadline of each message, in seconds.
        onnxruntime: Version of onnxruntime to insist on; empty for any.
    """

    models: str = ""
    model: str = ""
    version: int = 0
    device: str = "cpu"
    threads: int = 0
    timeout: float = 60.0
    onnxruntime: str = ""

    def client(self) -> InProcessClient:
        """Returns a new client; the models are loaded with the first one and stay loaded.

        Raises:
            LatentserveError: The device or the models folder is not usable, or onnxruntime has
                another version.
        """
        if self.onnxruntime not in ("", onnx.VERSION):
            raise LatentserveError(
                f"onnxruntime: got {onnx.VERSION}, wanted {self.onnxruntime} as in the process "
                "that planned the job"
            )
        with _lock:
            engine = _running.get(self)
            if engine is None:
                try:
                    engine = _running[self] = _Engine(self._settings())
                except StartError as error:
                    raise LatentserveError(str(error)) from error
        client = InProcessClient(
            engine.target, timeout=self.timeout, token=engine.token, retry=Retry()
        )
        client.engine = {"device": engine.device, "onnxruntime": onnx.VERSION}
        return client

    def _settings(self) -> Settings:
        options: dict[str, Any] = {"models": self.models} if self.models else {}
        if self.model and self.version:
            options["versions"] = f"latest,{self.model}={self.version}"
        settings = Settings(
            **options,
            device=self.device,
            threads=self.threads,
            host="127.0.0.1",
            grpc_port=0,
            http_port="off",
            drift_share=0,
        )
        resolved: dict[str, Any] = {
            "max_queue_bytes": settings.queue_bytes,
            "max_compute_bytes": settings.compute_bytes,
        }
        folder = settings.models
        if self.model and isinstance(folder, Path) and (folder / self.model).is_dir():
            # Others would take time and memory.
            resolved["models"] = folder / self.model
        return settings.model_copy(update=resolved)


class _Engine:
    """Loaded models, and the event loop of a thread that answers calls to them.

    Args:
        settings: Settings of a server with the models.

    Attributes:
        device: The device that computes.
        target: Address for clients.
        token: Token of the calls.

    Raises:
        StartError: The device or the models folder is not usable.
    """

    def __init__(self, settings: Settings):
        device = resolve_device(settings.device)
        self.device = str(device)
        self.token = secrets.token_hex(32)
        repository = Repository(
            parts.source(settings, lambda: False),
            functools.partial(parts.model, settings, device),
            settings.default_model,
            settings.versions,
            settings.route,
        )
        models = repository.models()
        self._loop = asyncio.new_event_loop()
        # A daemon: the process may end without closing it.
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="in-process models", daemon=True
        )
        self._thread.start()
        port = self._call(self._start(settings, models, parts.compute_threads(settings, device)))
        self.target = f"127.0.0.1:{port}"
        atexit.register(self._close)

    async def _start(self, settings: Settings, models: Models, threads: int) -> int:
        """Assembles what answers calls; returns the port."""
        telemetry = Telemetry(Metrics(), None, lambda _graph, _error: None)
        admission = parts.admission(settings)
        self._engine = parts.engine(settings, admission, telemetry, threads, is_worker=False)
        self._transport = parts.transport(settings)(
            Servicer(self._engine, lambda: models, settings),
            None,
            settings,
            authenticate=self._authenticate,
            capacity=admission,
            tls=None,
            telemetry=telemetry,
            shared=None,
        )
        await self._transport.start()
        await self._transport.show(models)
        return self._transport.port

    def _authenticate(self, authorization: str | None) -> str:
        if not secrets.compare_digest(authorization or "", f"Bearer {self.token}"):
            raise Unauthenticated("authorization: got a call of another process")
        return ""

    def _call(self, coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def _close(self) -> None:
        try:
            asyncio.run_coroutine_threadsafe(
                self._transport.drain(0, asyncio.Event()), self._loop
            ).result(_CLOSING_SECONDS)
        except TimeoutError:
            return
        self._engine.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CLOSING_SECONDS)
