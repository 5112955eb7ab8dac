"""A transport in this process and event loop, with handlers of a test's own."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc

from latentserve.v1 import latent_service_pb2 as pb
from service.engine.admission import Admission
from service.models.repository import Models
from service.net.tls import TlsFiles
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.grpcio_transport import GrpcioTransport
from service.transport.http2_transport import Http2Transport

FACTORIES: dict[str, Any] = {"http2": Http2Transport, "grpcio": GrpcioTransport}
_SERVICE = pb.DESCRIPTOR.services_by_name["LatentService"]
_PATH = f"/{_SERVICE.full_name}/"


class Handlers:
    """A servicer.

    Args:
        handlers: By the method's name in snake case; the others are UNIMPLEMENTED.
    """

    def __init__(self, **handlers: Callable[..., Any]):
        self.__dict__.update(handlers)


class Running:
    """A transport that serves.

    Args:
        transport: The transport.
        admission: Memory that its replies are counted in.
        metrics: Its metrics.
    """

    def __init__(self, transport: Any, admission: Admission, metrics: Metrics):
        self.transport = transport
        self.admission = admission
        self.metrics = metrics
        self.target = f"127.0.0.1:{transport.port}"

    def page(self) -> str:
        """The metrics page."""
        return self.metrics.exposition("text/plain")[0].decode()

    def channel(self) -> grpc.aio.Channel:
        """A channel with a connection of its own, without retries."""
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        return grpc.aio.insecure_channel(self.target, options=options)


@asynccontextmanager
async def serving(
    kind: str,
    servicer: Any,
    *,
    max_bytes: int = 2**29,
    tls: TlsFiles | None = None,
    authenticate: Callable[[str | None], str] = lambda _authorization: "",
    **settings: Any,
) -> AsyncIterator[Running]:
    """Starts a transport on a free port; its health is NOT_SERVING unless it is shown models.

    Args:
        kind: `http2` or `grpcio`.
        servicer: Implements LatentService, in whole or in part.
        max_bytes: Bytes that admission allows in flight.
        tls: Certificate and key.
        authenticate: Checks the `authorization` of a call.
        settings: Settings of the server.
    """
    metrics, admission = Metrics(), Admission(2**16, max_bytes)
    if tls is not None:
        metrics.watch_tls(lambda: tls.expires_at)
    transport = FACTORIES[kind](
        servicer,
        None,
        Settings(grpc_port=0, **settings),
        authenticate=authenticate,
        capacity=admission,
        tls=tls,
        telemetry=Telemetry(metrics, None, lambda *_: None),
    )
    await transport.start()
    try:
        yield Running(transport, admission, metrics)
    finally:
        await transport.drain(0, asyncio.Event())


def loaded() -> Models:
    """Models of which one, `one`, is loaded as far as health can tell."""
    return Models(default="one", loaded={"one": {}})


def unary(channel: grpc.aio.Channel, method: str) -> Any:
    """A unary method that sends and returns bytes."""
    return channel.unary_unary(_path(method))


def server_stream(channel: grpc.aio.Channel, method: str) -> Any:
    """A method with a stream of replies, in bytes."""
    return channel.unary_stream(_path(method))


def both_streams(channel: grpc.aio.Channel, method: str) -> Any:
    """A method with streams of requests and replies, in bytes."""
    return channel.stream_stream(_path(method))


def _path(method: str) -> str:
    return method if method.startswith("/") else _PATH + method
