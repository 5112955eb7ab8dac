"""Parts of a server, as its settings want them."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from bundle import Bundle, SignatureError, check_public_keys, verify_bundle
from common.cpus import usable_cpus
from service.dispatch.dispatcher import Authenticate
from service.dispatch.tokens import TokenFile
from service.engine.admission import Admission
from service.engine.batcher import INLINE_SECONDS, INLINE_SECONDS_ONE_CORE
from service.engine.callers import CallerLimits
from service.engine.engine import Engine
from service.errors import StartError, Unauthenticated
from service.models.limits import max_rows
from service.models.model import Model, load_model
from service.models.onnx import Device
from service.models.repository import Models
from service.models.sources import Source
from service.net.tls import TlsFiles
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.http2_transport import Http2Transport
from service.transport.transport import TransportFactory

_log = logging.getLogger(__name__)


def model(settings: Settings, device: Device, bundle: Bundle) -> Model:
    """Loads a bundle."""
    max_rows(bundle.manifest, settings.max_rows, settings.max_message_bytes)
    return load_model(
        bundle,
        device,
        threads=1,
        # A slow row takes all cores, since waiting for it is what matters.
        slow_threads=settings.threads or usable_cpus(),
        max_pixels=settings.max_pixels,
        max_compute_bytes=settings.compute_bytes,
    )


def verification(settings: Settings) -> Callable[[Bundle], None]:
    """Returns the function that refuses bundles which no trusted key has signed.

    Raises:
        StartError: A key cannot be used.
    """
    keys = settings.trust
    if not keys:
        return lambda _bundle: None
    try:
        check_public_keys(keys)
    except SignatureError as error:
        raise StartError(f"trust: {error}") from error

    def verify(bundle: Bundle) -> None:
        key = verify_bundle(bundle, keys)
        _log.info("%s/%d is signed by %s", bundle.manifest.name, bundle.manifest.version, key)

    return verify


def source(settings: Settings, stopped: Callable[[], bool]) -> Path | Source:
    """Returns where the models come from.

    Args:
        settings: Settings of the server.
        stopped: Polled while models are fetched; once it returns True, no more are.

    Raises:
        StartError: The cache cannot be used.
    """
    if isinstance(settings.models, Path):
        return settings.models
    # Imported only if it is used.
    from service.models.cache import Cache, default_folder
    from service.models.mirror import Mirror

    try:
        folder = settings.cache_dir or default_folder()
    except RuntimeError as error:  # the user has no home
        raise StartError(f"cache-dir: got none, wanted a folder: {error}") from error
    try:
        cache = Cache(folder, settings.cache_bytes)
    except OSError as error:
        raise StartError(
            f"cache-dir: got {folder}, wanted a folder that can be written: {error.strerror}"
        ) from error
    return Mirror(settings.models, cache, stopped)


def compute_threads(settings: Settings, device: Device) -> int:
    """Threads that compute batches."""
    # On a CPU each batch runs on one thread: two batches in parallel on one core each cost
    # less than one after the other on two cores (docs/performance.md).
    return (settings.threads or usable_cpus()) if device.kind == "cpu" else 1


def engine(
    settings: Settings, limits: Admission, telemetry: Telemetry, threads: int, *, is_worker: bool
) -> Engine:
    """Returns the engine.

    Args:
        settings: Settings of the server.
        limits: Limits on what is in flight.
        telemetry: Records the batches.
        threads: Threads that compute batches.
        is_worker: Whether it is one of several processes on the machine's cores.
    """
    # The only compute thread has to share a core with the event loop.
    one_core = threads == 1 and (is_worker or usable_cpus() == 1)
    return Engine(
        limits,
        telemetry,
        threads,
        settings.batch_window_seconds,
        INLINE_SECONDS_ONE_CORE if one_core else INLINE_SECONDS,
        settings.compute_bytes,
    )


class State:
    """The state of a server, as the Open Inference Protocol asks for it.

    Args:
        live: Returns whether the device works.
        ready: Returns whether the server answers calls to its default model.
        models: Returns the models that are being served.
    """

    def __init__(
        self,
        live: Callable[[], bool],
        ready: Callable[[], bool],
        models: Callable[[], Models],
    ):
        self._live = live
        self._ready = ready
        self._models = models

    @property
    def live(self) -> bool:
        """Whether the device works."""
        return self._live()

    @property
    def ready(self) -> bool:
        """Whether the server answers calls to its default model."""
        return self._ready()

    def model_ready(self, name: str) -> bool:
        """Whether the server answers calls to a model."""
        return self._live() and name in self._models().loaded


def transport(settings: Settings) -> TransportFactory:
    """Returns the transport class that is configured; imports grpcio only if it is used."""
    if settings.transport == "http2":
        return Http2Transport
    from service.transport.grpcio_transport import GrpcioTransport

    return GrpcioTransport


def admission(settings: Settings) -> Admission:
    """Returns the limits on what is in flight, of all callers and of each."""
    per_caller = settings.max_rows_per_caller, settings.max_calls_per_caller
    callers = CallerLimits(*per_caller) if any(per_caller) else None
    return Admission(settings.max_queue_rows, settings.queue_bytes, callers=callers)


def authentication(settings: Settings) -> Authenticate:
    """Returns the function that checks the `authorization` of every call."""
    if settings.token_file is None:
        return lambda _authorization: ""
    tokens = TokenFile(settings.token_file)

    def check(authorization: str | None) -> str:
        name = tokens.caller(authorization)
        if name is None:
            what = "a wrong token" if authorization else "no token"
            raise Unauthenticated(f"authorization: got {what}, wanted 'Bearer TOKEN'")
        return name

    return check


def tls_files(settings: Settings, protocol: Literal["h2", "http/1.1"] = "h2") -> TlsFiles | None:
    """Returns certificate and key for connections of a protocol; None for plain text.

    Raises:
        StartError: Only one of them is given, or they cannot be used.
    """
    certificate, key = settings.tls_cert, settings.tls_key
    if certificate is None and key is None and settings.tls_client_ca is None:
        return None
    if certificate is None or key is None:
        raise StartError("tls-cert and tls-key: got only one of them, wanted both or neither")
    return TlsFiles(certificate, key, settings.tls_client_ca, protocol)
