"""gRPC by grpcio's asyncio server: its port, and how it ends."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any, NoReturn

import grpc

from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.engine.call import Call
from service.errors import StartError
from service.models.repository import Models
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.addresses import Shared, free_addresses
from service.transport.dispatch import Dispatcher, Rpc, new_call
from service.transport.health import Health
from service.transport.services import services
from service.transport.status import CallFailed, RpcStatus
from service.transport.tls import TlsFiles

Context = grpc.aio.ServicerContext[Any, Any]

# For what is not a call of ours, such as a watch of the health.
_STREAMS_SECONDS = 1.0
# The client pings every 30 s; a server that pinged back as a nuisance would cut it off.
_SHORTEST_PING_MS = 10_000
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioTransport:
    """A gRPC server with health and, if asked, AdminService and reflection.

    Args:
        servicer: Answers the calls to LatentService.
        admin: Answers those to AdminService, or None not to serve it.
        settings: Address, limits, reflection.
        authenticate: Raises Unauthenticated where a call's `authorization` is not right.
        tls: Certificate and key, or None for a plain port.
        telemetry: Told of every call.
        shared: Where this process listens together with others; None to have the port alone.

    Attributes:
        port: The port it is bound to, once it has started.
    """

    def __init__(
        self,
        servicer: Servicer,
        admin: AdminServicer | None,
        settings: Settings,
        *,
        authenticate: Callable[[str | None], None],
        tls: TlsFiles | None,
        telemetry: Telemetry,
        shared: Shared | None = None,
    ):
        self._health = Health()
        self._dispatcher = Dispatcher(authenticate, telemetry)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would share its calls unseen.
                ("grpc.so_reuseport", int(shared is not None)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _SHORTEST_PING_MS),
                # Lets clients find servers that were added; calls in flight finish.
                ("grpc.max_connection_age_ms", round(1000 * settings.max_connection_age_seconds)),
            ],
        )
        rpcs = services(servicer, admin, self._health, reflection=settings.reflection)
        for name in {rpc.service for rpc in rpcs}:
            handlers = {rpc.name: self._handler(rpc) for rpc in rpcs if rpc.service == name}
            self._server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(name, handlers),)
            )
        self._settings, self._tls, self._shared = settings, tls, shared
        self.port = settings.grpc_port

    async def start(self) -> None:
        """Begins to answer; health is NOT_SERVING until `show`.

        Raises:
            StartError: The port is taken or the address is not this machine's.
        """
        # Not before: where grpcio binds it listens, and who connects would wait.
        self._bind(self._settings.host)
        await self._server.start()

    async def show(self, models: Models, *, well: bool = True) -> None:
        """Sets the health of the server, which is that of its default model, and of each model.

        Args:
            models: What is served.
            well: Whether the device works.
        """
        self._health.show(models, well=well)

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Says NOT_SERVING, refuses new calls, and lets those in flight finish.

        Args:
            seconds: Calls that take longer are cut off.
            hurry: Set to cut them off at once.
        """
        self._health.drain()
        self._dispatcher.draining = True
        stopping = asyncio.create_task(self._server.stop(seconds))
        hurrying = asyncio.create_task(hurry.wait())
        finishing = asyncio.create_task(self._dispatcher.finished())
        await asyncio.wait((stopping, hurrying, finishing), return_when=asyncio.FIRST_COMPLETED)
        # A watch of the health never ends by itself; the last reply still has to get out.
        # grpcio dies of a `stop` while another one cuts everything off.
        if seconds and not stopping.done():
            await self._server.stop(0 if hurry.is_set() else min(seconds, _STREAMS_SECONDS))
        await stopping
        for task in (hurrying, finishing):
            task.cancel()

    def _handler(self, rpc: Rpc) -> Any:
        async def unary(raw: bytes, context: Context) -> Any:
            try:
                return b"".join(await self._dispatcher.unary(rpc, raw, _call(context)))
            except CallFailed as error:
                await _abort(context, error.failure)

        async def stream(requests: Any, context: Context) -> None:
            raw = _read(context) if rpc.takes_stream else requests
            try:
                async with aclosing(self._dispatcher.stream(rpc, raw, _call(context))) as replies:
                    async for reply in replies:
                        # As fast as the caller takes them.
                        await context.write(b"".join(reply))
            except CallFailed as error:
                await _abort(context, error.failure)

        if rpc.takes_stream:
            return grpc.stream_stream_rpc_method_handler(stream)
        if rpc.gives_stream:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _bind(self, host: str) -> None:
        """Binds every address that the host has, to one port, or none."""
        shared = self._shared
        for address in free_addresses(host, self.port) if shared is None else shared.addresses:
            shown = f"[{address}]:{self.port}" if ":" in address else f"{address}:{self.port}"
            try:
                if self._tls is None:
                    self.port = self._server.add_insecure_port(shown)
                else:
                    self.port = self._server.add_secure_port(shown, _credentials(self._tls))
            except RuntimeError as error:
                raise StartError(f"port: cannot listen on {shown}: {error}") from error


def _credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    def configuration() -> grpc.ServerCertificateConfiguration:
        certificate, key, client_ca = tls.contents
        return grpc.ssl_server_certificate_configuration([(key, certificate)], client_ca)

    def changed() -> grpc.ServerCertificateConfiguration | None:
        """Asked in threads of grpc's, with each new connection; None for no change."""
        return configuration() if tls.reread() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        changed,  # type: ignore[arg-type] # the stubs know of no None
        require_client_authentication=tls.asks_for_certificates,
    )


def _call(context: Context) -> Call:
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    left = context.time_remaining()
    now = time.monotonic()
    return new_call(metadata, context.peer(), math.inf if left is None else now + left, now)


async def _read(context: Context) -> AsyncIterator[bytes]:
    while (raw := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        yield raw


async def _abort(context: Context, failure: RpcStatus) -> NoReturn:
    """Ends a call with an error.

    Raises:
        grpc.aio.AbortError: Always; grpcio wants it to pass.
    """
    await context.abort(_CODES[failure.status], failure.message, failure.metadata)
    raise AssertionError("abort raises")
