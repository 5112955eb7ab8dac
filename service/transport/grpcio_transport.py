"""gRPC transport on grpcio's asyncio server."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, NoReturn

import grpc

from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.api.wire import Chunks
from service.dispatch.dispatcher import Authenticate, Dispatcher, new_call
from service.dispatch.rpc import Rpc
from service.dispatch.status import CallFailed, RpcStatus, no_room
from service.dispatch.unread import Capacity
from service.engine.call import Call
from service.errors import NotReady, OutOfMemory, StartError
from service.models.repository import Models
from service.net.addresses import Shared, free_addresses
from service.net.tls import TlsFiles
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.grpcio_calls import OpenCall, OpenCalls
from service.transport.health import Health
from service.transport.services import services

Context = grpc.aio.ServicerContext[Any, Any]

# Time for sending the status of calls that a drain has ended, and for health watches to end.
_STATUS_SECONDS = 1.0
# Our client pings every 10 s; grpcio would close its connection for too many pings by default, and
# sooner or later also with a limit of exactly 10 s.
_MIN_PING_INTERVAL_MS = 5_000
_CODES = {code.value[0]: code for code in grpc.StatusCode}


class GrpcioTransport:
    """`Transport` implemented with grpcio.

    Args:
        servicer: Implements LatentService.
        admin: Implements AdminService; None leaves it out.
        settings: Address, limits, reflection.
        authenticate: Checks the `authorization` of a call; returns the name of its token.
        capacity: Counts and limits the bytes of replies until their callers have read them.
        tls: Certificate and key; None for plain text.
        telemetry: Records every call.
        shared: Addresses that all workers listen on; None if this process owns the port alone.

    Attributes:
        port: Port number; after `start`, the one that is bound.
    """

    def __init__(
        self,
        servicer: Servicer,
        admin: AdminServicer | None,
        settings: Settings,
        *,
        authenticate: Authenticate,
        capacity: Capacity,
        tls: TlsFiles | None,
        telemetry: Telemetry,
        shared: Shared | None = None,
    ):
        self._health = Health()
        self._dispatcher = Dispatcher(authenticate, telemetry)
        self._capacity = capacity
        self._calls = OpenCalls(
            settings.max_connection_age_seconds, settings.max_connection_age_grace_seconds
        )
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", settings.max_message_bytes),
                ("grpc.max_send_message_length", settings.max_message_bytes),
                # Otherwise a second server on the port would silently get a share of the calls.
                ("grpc.so_reuseport", int(shared is not None)),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", _MIN_PING_INTERVAL_MS),
                ("grpc.max_concurrent_streams", settings.max_streams_per_connection),
                # Clients reconnect, and so discover added servers; calls in flight finish.
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
        if shared is None:
            # Only checked: grpcio listens as soon as it binds, and clients would connect and wait.
            free_addresses(settings.host, settings.grpc_port)

    async def start(self) -> None:
        """Begins to accept calls; health is NOT_SERVING until `show` is called.

        Raises:
            StartError: The port is taken or the address is not this machine's.
        """
        # Bound only now, when calls can be answered.
        self._bind(self._settings.host)
        await self._server.start()
        self._calls.watch()

    async def show(self, models: Models, *, device_ok: bool = True) -> None:
        """Updates the health of each model, and of the server (that of its default model).

        Args:
            models: Models that are loaded.
            device_ok: Whether the device works.
        """
        self._health.show(models, device_ok=device_ok)

    def lame_duck(self) -> None:
        """Sets health to NOT_SERVING permanently; calls and new connections are still served."""
        self._health.lame_duck()

    async def drain(self, seconds: float, force_stop: asyncio.Event) -> None:
        """Shuts down: health is NOT_SERVING, the port closes, and calls in flight may finish.

        grpcio itself refuses calls that arrive from now on. Calls that are open at the end, health
        watches among them, end as UNAVAILABLE.

        Args:
            seconds: Time limit for calls to finish.
            force_stop: Once set, the calls are ended at once.
        """
        self.lame_duck()
        # Longer than the limit, since calls that grpcio itself ends get no status.
        stopping = asyncio.create_task(self._server.stop(seconds + _STATUS_SECONDS))
        forced = asyncio.create_task(force_stop.wait())
        answered = asyncio.create_task(self._dispatcher.finished())
        await asyncio.wait(
            (stopping, forced, answered), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if not stopping.done():
            self._calls.end_all(NotReady("the server is stopping; another one will answer"))
            # Shortens the time limit: health watches and last replies need no more.
            await self._server.stop(_STATUS_SECONDS)
        await stopping
        self._calls.close()
        for task in (forced, answered):
            task.cancel()

    def _handler(self, rpc: Rpc) -> Any:
        calls, capacity, dispatcher = self._calls, self._capacity, self._dispatcher

        def begin(context: Context) -> OpenCall:
            return calls.begin(
                idle=rpc.takes_stream or not rpc.counted,
                has_deadline=context.time_remaining() is not None,
            )

        async def unary(raw: bytes, context: Context) -> Any:
            call = begin(context)
            reply = b""

            def send(chunks: Chunks) -> None:
                nonlocal reply
                reply = b"".join(chunks)
                if rpc.counted and not capacity.has_room(len(reply)):
                    raise no_room(len(reply))

            try:
                await dispatcher.unary(rpc, raw, _call(context), send)
            except CallFailed as error:
                await _abort(context, error.failure)
            except MemoryError:
                await _abort(context, RpcStatus.of(OutOfMemory()))
            except asyncio.CancelledError:
                await _abort(context, call.failure())
            finally:
                calls.finish(call)
            # Counted until grpcio has sent the reply as far as flow control allows. The callback
            # must not hold the reply: its cycle with the context is rarely collected.
            size = len(reply)
            capacity.hold(size)
            _when_done(context, lambda: capacity.release(size))
            return reply

        async def stream(requests: Any, context: Context) -> None:
            call = begin(context)
            raw = _read(context, call) if rpc.takes_stream else requests
            held = 0

            async def send(chunks: Chunks) -> None:
                nonlocal held
                reply = b"".join(chunks)
                held = len(reply)
                capacity.hold(held)
                # Waits while the caller does not read (back-pressure).
                call.writes = True
                await context.write(reply)
                call.writes = False
                call.unanswered -= 1
                capacity.release(held)
                held = 0
                call.moved()

            try:
                await dispatcher.stream(rpc, raw, _call(context), send)
            except CallFailed as error:
                await _abort(context, error.failure)
            except MemoryError:
                await _abort(context, RpcStatus.of(OutOfMemory()))
            except asyncio.CancelledError:
                await _abort(context, call.failure())
            finally:
                calls.finish(call)
                if held:
                    _when_done(context, lambda: capacity.release(held))

        if rpc.takes_stream:
            return grpc.stream_stream_rpc_method_handler(stream)
        if rpc.gives_stream:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(unary)

    def _bind(self, host: str) -> None:
        """Binds all addresses of the host to one port."""
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
        """Returns the new certificate if the files have changed, else None.

        grpcio calls it from its own threads for each new connection.
        """
        return configuration() if tls.reload() else None

    return grpc.dynamic_ssl_server_credentials(
        configuration(),
        changed,  # type: ignore[arg-type] # the stubs do not allow None
        require_client_authentication=tls.asks_for_certificates,
    )


def _call(context: Context) -> Call:
    metadata = {
        key: value for key, value in context.invocation_metadata() or () if isinstance(value, str)
    }
    left = context.time_remaining()
    now = time.monotonic()
    return new_call(metadata, context.peer(), math.inf if left is None else now + left, now)


def _when_done(context: Context, then: Callable[[], None]) -> None:
    """Calls `then` once the status of a call has been sent, or its caller has left."""
    context.add_done_callback(lambda _: then())  # type: ignore[arg-type] # the stubs want a future


async def _read(context: Context, call: OpenCall) -> AsyncIterator[bytes]:
    while (raw := await context.read()) is not grpc.aio.EOF:  # type: ignore[attr-defined]
        call.moved()
        call.unanswered += 1
        yield raw


async def _abort(context: Context, failure: RpcStatus) -> NoReturn:
    """Ends a call with a status other than OK.

    Raises:
        grpc.aio.AbortError: Always; grpcio handles it.
    """
    await context.abort(_CODES[failure.status], failure.message, failure.metadata)
    raise AssertionError("abort raises")
