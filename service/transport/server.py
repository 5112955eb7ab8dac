"""The gRPC server: its port, its health, and how it ends."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from latentserve.v1 import admin_service_pb2, latent_service_pb2
from service.admin import AdminServicer
from service.errors import ServiceError, StartError
from service.servicer import Servicer
from service.settings import Settings
from service.store import Models
from service.telemetry import Telemetry
from service.transport.addresses import free_addresses
from service.transport.calls import Calls, Context
from service.transport.errors import abort
from service.transport.tls import TlsFiles

_LATENT = latent_service_pb2.DESCRIPTOR.services_by_name["LatentService"]
_ADMIN = admin_service_pb2.DESCRIPTOR.services_by_name["AdminService"]

# For what is not a call of ours, such as a watch of the health.
_STREAMS_SECONDS = 1.0
# The client pings every 30 s; a server that pinged back as a nuisance would cut it off.
_SHORTEST_PING_MS = 10_000


class GrpcTransport:
    """A gRPC server with health and, if asked, AdminService and reflection.

    Args:
        servicer: Answers the calls to LatentService.
        admin: Answers those to AdminService, or None not to serve it.
        settings: Address, limits, reflection.
        authenticate: Raises Unauthenticated where a call's `authorization` is not right.
        tls: Certificate and key, or None for a plain port.
        telemetry: Told of every call.

    Attributes:
        port: The port it is bound to.

    Raises:
        StartError: The port is taken or the address is not this machine's.
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
    ):
        self._health = health.aio.HealthServicer()  # type: ignore[attr-defined]
        self._calls = Calls(authenticate, telemetry)
        self._known: set[str] = set()
        self._server = grpc.aio.server(
            interceptors=[_Authentication(authenticate)],
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Two servers on one port would share its calls unseen.
                ("grpc.so_reuseport", 0),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_recv_ping_interval_without_data_ms", _SHORTEST_PING_MS),
                # Lets clients find servers that were added; calls in flight finish.
                ("grpc.max_connection_age_ms", round(1000 * settings.max_connection_age_seconds)),
            ],
        )
        services: list[tuple[ServiceDescriptor, Any]] = [(_LATENT, servicer)]
        if admin is not None:
            services.append((_ADMIN, admin))
        for service, answers in services:
            self._server.add_generic_rpc_handlers((self._calls.handlers(service, answers),))
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        if settings.reflection:
            names = [service.full_name for service, _ in services]
            reflection.enable_server_reflection(
                (*names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server
            )
        self.port = self._bind(settings.host, settings.grpc_port, tls)

    async def start(self) -> None:
        """Begins to answer; health is NOT_SERVING until `show`."""
        await self.show(Models())
        await self._server.start()

    async def show(self, models: Models, *, well: bool = True) -> None:
        """Sets the health of the server, which is that of its default model, and of each model.

        Args:
            models: What is served.
            well: Whether the device works.
        """
        serving = {f"{_LATENT.full_name}/{name}": name in models.loaded for name in models.names}
        serving |= {"": bool(models.default), _LATENT.full_name: bool(models.default)}
        # A model that has vanished does not serve.
        self._known |= serving.keys()
        for name in self._known:
            await self._set(name, well and serving.get(name, False))

    async def drain(self, seconds: float, hurry: asyncio.Event) -> None:
        """Says NOT_SERVING, refuses new calls, and lets those in flight finish.

        Args:
            seconds: Calls that take longer are cut off.
            hurry: Set to cut them off at once.
        """
        await self._health.enter_graceful_shutdown()
        self._calls.draining = True
        stopping = asyncio.create_task(self._server.stop(seconds))
        hurrying = asyncio.create_task(hurry.wait())
        finishing = asyncio.create_task(self._calls.finished())
        await asyncio.wait((stopping, hurrying, finishing), return_when=asyncio.FIRST_COMPLETED)
        # A watch of the health never ends by itself; the last reply still has to get out.
        await self._server.stop(0 if hurry.is_set() else min(seconds, _STREAMS_SECONDS))
        await stopping
        for task in (hurrying, finishing):
            task.cancel()

    async def _set(self, name: str, serving: bool) -> None:
        state = health_pb2.HealthCheckResponse
        await self._health.set(name, state.SERVING if serving else state.NOT_SERVING)

    def _bind(self, host: str, port: int, tls: TlsFiles | None) -> int:
        """Binds every address that the host has, to one port, or none."""
        for address in free_addresses(host, port):
            shown = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
            try:
                if tls is None:
                    port = self._server.add_insecure_port(shown)
                else:
                    port = self._server.add_secure_port(shown, tls.server_credentials())
            except RuntimeError as error:
                raise StartError(f"port: cannot listen on {shown}: {error}") from error
        return port


class _Authentication(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Asks for the token where no call of ours does: reflection. Health alone is exempt."""

    def __init__(self, authenticate: Callable[[str | None], None]):
        self._authenticate = authenticate

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        service = str(handler_call_details.method).split("/")[1]
        if handler is None or service != reflection.SERVICE_NAME:
            return handler
        metadata: dict[str, Any] = dict(handler_call_details.invocation_metadata or ())
        try:
            self._authenticate(metadata.get("authorization"))
        except ServiceError as error:
            refusal = error

            async def refuse(_requests: Any, context: Context) -> None:
                await abort(context, refusal)

            return grpc.stream_stream_rpc_method_handler(refuse)
        return handler
