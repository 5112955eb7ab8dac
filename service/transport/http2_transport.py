"""gRPC transport on our own HTTP/2: listening sockets, connections, graceful shutdown."""

import asyncio
import logging
from collections.abc import Iterator
from functools import partial

from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.dispatch.dispatcher import Authenticate, Dispatcher
from service.dispatch.unread import STALLED_SECONDS, Capacity, Unread, UnreadReplies
from service.dispatch.uploads import Upload, Uploads
from service.errors import NotReady, TooLarge, Unimplemented, shortened
from service.models.repository import Models
from service.net.acceptor import Acceptor
from service.net.addresses import Shared, exclusive_sockets
from service.net.openings import Openings
from service.net.tls import TlsFiles
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.age import Ages
from service.transport.grpc_call import GrpcCall, refuse, refuse_non_grpc
from service.transport.health import Health
from service.transport.http2.connection import Connection
from service.transport.http2.frames import ErrorCode
from service.transport.http2.headers import MAX_HEADER_LIST_BYTES
from service.transport.http2.stream import Stream
from service.transport.services import services

_log = logging.getLogger(__name__)

# Time that a drain gives to clients to complete a TLS handshake, after the port has closed.
_OPENING_SECONDS = 1.0
# Time that a drain gives to callers to read the last replies and close their connections; part of
# `EXIT_SECONDS`.
_LINGER_SECONDS = 3.0
# Time to pass the last frames to the kernel, after connections have been closed.
_FLUSH_SECONDS = 0.2
_POLL_SECONDS = 0.01
_STOPPING = "the server is stopping; another one will answer"
_NOT_SENT = "the rest of the request did not arrive while other calls lacked its memory"
_NOT_READ = f"the reply was not read for {STALLED_SECONDS:g} s while other calls lacked its memory"


class Http2Transport:
    """`Transport` on our own HTTP/2; also the `Listener` of its connections.

    Args:
        servicer: Implements LatentService.
        admin: Implements AdminService; None leaves it out.
        settings: Address, limits, reflection.
        authenticate: Checks the `authorization` of a call; returns the name of its token.
        capacity: Counts and limits the bytes of replies until their callers have read them.
        tls: Certificate and key; None for plain text.
        telemetry: Records every call.
        shared: Source of this worker's connections; None if this process owns the port alone.

    Attributes:
        port: Port number that is bound.

    Raises:
        StartError: The port is taken or the address is not this machine's.
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
        self._max_bytes = settings.max_message_bytes
        self._uploads = Uploads(settings.queue_bytes, self._unfinished_requests)
        self._max_streams = settings.max_streams_per_connection
        self._unread = UnreadReplies(capacity, self._unread_replies)
        grace = settings.max_connection_age_grace_seconds
        aged = NotReady(
            f"the connection has reached its maximum age, and no byte has moved for {grace:g} s"
        )
        self._ages = Ages(
            settings.max_connection_age_seconds, grace, _needs_caller, partial(_cut, error=aged)
        )
        rpcs = services(servicer, admin, self._health, reflection=settings.reflection)
        self._rpcs = {rpc.path: rpc for rpc in rpcs}
        self._draining = False
        self._connections: set[Connection] = set()
        telemetry.watch_open(
            "grpc",
            connections=lambda: len(self._connections),
            # In the scrape's thread, so over a copy.
            streams=lambda: sum(len(one.streams) for one in tuple(self._connections)),
        )
        self._no_connections = asyncio.Event()
        self._no_connections.set()
        self._openings = Openings(
            tls, telemetry.handshake_failed, self._make_connection, self._opened
        )
        if shared is None:
            sockets = exclusive_sockets(settings.host, settings.grpc_port)
            self._acceptor = Acceptor(self._openings.add, sockets)
            self.port: int = sockets[0].getsockname()[1]
        else:
            self._acceptor = Acceptor(self._openings.add, channel=shared.channel)
            self.port = settings.grpc_port

    async def start(self) -> None:
        """Begins to accept calls; health is NOT_SERVING until `show` is called."""
        self._acceptor.open()

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

        Calls that arrive on a connection before its last GOAWAY may finish too, as HTTP/2 promises.
        Calls that are open at the end, health watches among them, end as UNAVAILABLE.

        Args:
            seconds: Time limit for calls to finish.
            force_stop: Once set, the calls are ended at once.
        """
        self.lame_duck()
        self._draining = True
        await self._acceptor.close()
        for connection in list(self._connections):
            connection.shut_down()
        forced = asyncio.create_task(force_stop.wait())
        answered = asyncio.create_task(self._answered())
        await asyncio.wait((forced, answered), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for task in (forced, answered):
            task.cancel()
        self._openings.cancel()
        for connection in list(self._connections):
            for stream in connection.streams:
                _cut(stream, NotReady(_STOPPING))
            connection.refuse_streams()
        # Cancelled calls end, and are counted, in the next event-loop iterations.
        await self._dispatcher.finished()
        # Clients close connections themselves, once they have read the last replies.
        await self._left(min(seconds, _LINGER_SECONDS), force_stop)
        for connection in list(self._connections):
            connection.close()
        await self._left(_FLUSH_SECONDS)
        self._unread.close()
        self._uploads.close()

    async def _left(self, seconds: float, force_stop: asyncio.Event | None = None) -> None:
        """Waits until all connections are closed or a stop is forced, for at most `seconds`."""
        events = (
            [self._no_connections] if force_stop is None else [self._no_connections, force_stop]
        )
        waits = [asyncio.create_task(event.wait()) for event in events]
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()

    async def _answered(self) -> None:
        """Waits until no new call can arrive and no open call is one that a drain waits for."""
        loop = asyncio.get_running_loop()
        opened_by = loop.time() + _OPENING_SECONDS
        while any(map(_is_busy, self._connections)) or (self._openings and loop.time() < opened_by):
            await asyncio.sleep(_POLL_SECONDS)

    # Called by connections.

    def made(self, connection: Connection) -> None:
        """Adds a new connection to the table."""
        self._connections.add(connection)
        self._ages.add(connection)
        self._no_connections.clear()

    def accept(self, stream: Stream) -> None:
        """Routes a new request to its method, or refuses it."""
        head = stream.head
        if head.method != "POST" or not _is_grpc(head.fields.get("content-type", "")):
            refuse_non_grpc(stream)
            return
        rpc = self._rpcs.get(head.path)
        if rpc is None:
            refuse(stream, Unimplemented(f"Method not found! ({shortened(head.path)})"))
            return
        if head.too_large:
            limit = f"wanted at most {MAX_HEADER_LIST_BYTES} bytes"
            refuse(stream, TooLarge(f"metadata: too large, {limit}"))
            return
        stream.receiver = GrpcCall(
            stream, rpc, self._dispatcher, self._max_bytes, self._uploads.hold
        )

    def lost(self, connection: Connection) -> None:
        """Removes a closed connection from the table."""
        self._connections.discard(connection)
        self._ages.remove(connection)
        if not self._connections:
            self._no_connections.set()

    def _unfinished_requests(self) -> Iterator[Upload]:
        error = NotReady(_NOT_SENT)
        for connection in self._connections:
            for stream in connection.streams:
                receiver = stream.receiver
                if isinstance(receiver, GrpcCall) and receiver.awaits_request:
                    yield receiver.received_at, partial(receiver.cut, error)

    def _unread_replies(self) -> Iterator[Unread]:
        for connection in self._connections:
            for moved_at, count, stream in connection.unread():
                if stream is None:
                    yield moved_at, count, connection.abort
                else:
                    yield moved_at, count, partial(_cut, stream, NotReady(_NOT_READ))

    # Connections.

    def _make_connection(self) -> Connection:
        return Connection(self, self._max_streams, self._unread)

    def _opened(self, connection: Connection) -> None:
        if self._draining:
            connection.shut_down()


def _is_busy(connection: Connection) -> bool:
    return not connection.refuses_streams or any(
        isinstance(stream.receiver, GrpcCall) and stream.receiver.counted
        for stream in connection.streams
    )


def _needs_caller(stream: Stream) -> bool:
    receiver = stream.receiver
    return not isinstance(receiver, GrpcCall) or receiver.needs_caller


def _cut(stream: Stream, error: NotReady) -> None:
    """Ends a call now."""
    receiver = stream.receiver
    if isinstance(receiver, GrpcCall):
        receiver.cut(error)
    else:
        stream.reset(ErrorCode.CANCEL)


def _is_grpc(content_type: str) -> bool:
    return content_type in ("application/grpc", "application/grpc+proto") or (
        content_type.startswith(("application/grpc;", "application/grpc+proto;"))
    )
