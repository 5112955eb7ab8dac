"""The gateway's port: connections, metrics, graceful shutdown."""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send
from uvicorn.config import Config
from uvicorn.server import ServerState

from latentserve.v1 import latent_service_pb2 as pb
from service.api.inference.servicer import State
from service.api.servicer import Servicer
from service.dispatch.dispatcher import Authenticate, Dispatcher
from service.dispatch.inference import inference_rpcs
from service.dispatch.rpc import rpcs_of
from service.dispatch.unread import Capacity
from service.errors import ServiceError
from service.gateway.app import application, routes
from service.gateway.calls import Calls
from service.gateway.connection import MAX_HEAD_BYTES, HttpConnection
from service.gateway.diffusers.endpoints import RemoteVae
from service.gateway.exchange import Exchange
from service.gateway.inference.endpoints import InferenceRoutes
from service.gateway.receiving import Receiving
from service.gateway.sending import Sending
from service.gateway.streams import Streams
from service.gateway.tracing import Traced
from service.gateway.unary import UnaryCalls
from service.net.acceptor import Acceptor
from service.net.addresses import exclusive_sockets
from service.net.openings import Openings
from service.net.tls import TlsFiles
from service.observe.telemetry import Telemetry
from service.settings import Settings

_log = logging.getLogger(__name__)

#: Name of the gateway in metrics.
TRANSPORT: Final = "http"
# Time of an idle connection: above the minute after which many proxies reuse one.
_IDLE_SECONDS: Final = 75
# Time that a drain gives to connections on which no request has arrived yet.
_FIRST_SECONDS: Final = 1.0
# Time that a drain gives to callers to read the last replies.
_LINGER_SECONDS: Final = 3.0
_POLL_SECONDS: Final = 0.01


class Gateway:
    """Serves LatentService by HTTP/1.1.

    Args:
        servicer: Implements LatentService; its engine has the threads in which replies are written.
        settings: Address, limits, who may call.
        authenticate: Checks the `authorization` of a call; returns the name of its token.
        capacity: Counts and limits the bytes of replies until their callers have read them.
        tls: Certificate and key; None for plain text.
        telemetry: Records every call.
        state: State of the server and its models, for the Open Inference Protocol.
        metrics: Returns the page of metrics and its content type, given an Accept header.
        grpc_port: Port of gRPC, for the calls that the explorer shows.
        channel: Unix socket over which the supervisor hands over accepted connections; None if
            this process owns the port.

    Attributes:
        port: Port number that is bound.

    Raises:
        StartError: The port is taken or the address is not this machine's.
    """

    def __init__(
        self,
        servicer: Servicer,
        settings: Settings,
        *,
        authenticate: Authenticate,
        capacity: Capacity,
        tls: TlsFiles | None,
        telemetry: Telemetry,
        state: State,
        metrics: Callable[[str], Awaitable[tuple[bytes, str]]],
        grpc_port: int,
        channel: socket.socket | None = None,
    ):
        self._dispatcher = Dispatcher(authenticate, telemetry, TRANSPORT, traced=False)
        self._authenticate = authenticate
        self._metrics = metrics
        self._receiving = Receiving(
            self._dispatcher, settings.max_message_bytes, settings.queue_bytes
        )
        self._sending = Sending(capacity)
        self._age = settings.max_connection_age_seconds
        service = pb.DESCRIPTOR.services_by_name["LatentService"]
        rpcs = {rpc.name: rpc for rpc in rpcs_of(service, servicer)}
        engine, selection = servicer.engine, servicer.selection
        unary = UnaryCalls(self._dispatcher, self._sending)
        calls = Calls(
            rpcs, engine, selection, unary, self._receiving,
            private=settings.token_file is not None, max_rows=settings.max_rows,
        )  # fmt: skip
        streams = Streams(
            rpcs, self._dispatcher, self._receiving, self._sending,
            max_bytes=settings.max_message_bytes, max_rows=settings.max_rows,
        )  # fmt: skip
        vae = RemoteVae(rpcs, engine, selection, unary, self._receiving)
        inference = InferenceRoutes(
            {rpc.name: rpc for rpc in inference_rpcs(servicer, state)},
            engine, unary, self._receiving,
        )  # fmt: skip
        found = routes(calls, streams, inference, vae, self._metrics_page)
        self._app = Traced(application(found, settings, grpc_port), telemetry)
        self._config = Config(
            self._serve,
            http=HttpConnection,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            date_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        )
        self._config.load()
        # Every request that is no HTTP would be a warning.
        logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
        self._state = ServerState()
        self._connections: set[HttpConnection] = set()
        telemetry.watch_open(TRANSPORT, connections=lambda: len(self._connections))
        self._leaving = False
        self._openings = Openings(
            tls, telemetry.handshake_failed, self._make_connection, self._opened
        )
        self.port: int = 0
        if channel is None:
            assert settings.gateway_port != "off"
            sockets = exclusive_sockets(settings.host, settings.gateway_port, "--gateway-port")
            self._acceptor = Acceptor(self._openings.add, sockets)
            self.port = sockets[0].getsockname()[1]
        else:
            self._acceptor = Acceptor(self._openings.add, channel=channel)

    async def start(self) -> None:
        """Begins to accept connections."""
        self._acceptor.open()

    def lame_duck(self) -> None:
        """From now on, connections close after their next reply, so that callers go elsewhere."""
        self._leaving = True

    async def drain(self, seconds: float, force_stop: asyncio.Event) -> None:
        """Shuts down: the port closes, and requests in flight may finish.

        Requests that are open at the end are answered 503, or cut if their replies have begun.

        Args:
            seconds: Time limit for requests to finish.
            force_stop: Once set, they are ended at once.
        """
        self.lame_duck()
        await self._acceptor.close()
        self._shut(used=True)
        # The first request of a connection may be on its way.
        later = asyncio.get_running_loop().call_later(_FIRST_SECONDS, self._shut)
        forced = asyncio.create_task(force_stop.wait())
        answered = asyncio.create_task(self._no_connection_left())
        await asyncio.wait((forced, answered), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        later.cancel()
        forced.cancel()
        self._openings.cancel()
        for connection in list(self._connections):
            connection.end()
        await self._dispatcher.finished()
        await asyncio.wait((answered,), timeout=min(seconds, _LINGER_SECONDS))
        answered.cancel()
        for connection in list(self._connections):
            connection.abort()
        self._sending.close()
        self._receiving.close()

    def _shut(self, *, used: bool = False) -> None:
        """Closes idle connections, and the others after their reply; `used`: not the new ones."""
        for connection in list(self._connections):
            if connection.used or not used:
                connection.shutdown()

    async def _no_connection_left(self) -> None:
        while self._connections or self._openings:
            await asyncio.sleep(_POLL_SECONDS)

    # The application.

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request; tells its caller to connect anew if the connection is to close."""
        connection: HttpConnection = scope["state"]["connection"]
        age = asyncio.get_running_loop().time() - connection.opened_at
        closes = self._leaving or age > self._age

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start" and (closes or self._leaving):
                headers = [*message.get("headers", []), (b"connection", b"close")]
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._app(scope, receive, answer)
        except asyncio.CancelledError:
            if not connection.closed:
                connection.abort()

    async def _metrics_page(self, request: Request) -> Response:
        exchange = Exchange(request)
        try:
            self._authenticate(exchange.call.metadata.get("authorization"))
        except ServiceError as error:
            return exchange.failed(error)
        accept = request.headers.get("accept", "")
        content, media_type = await self._metrics(accept)
        return Response(content, 200, {"Cache-Control": "no-store", "Content-Type": media_type})

    # Connections.

    def _make_connection(self) -> HttpConnection:
        return HttpConnection(self._config, self._state, self._connections.discard)

    def _opened(self, connection: HttpConnection) -> None:
        if not connection.transport.is_closing():
            self._connections.add(connection)
