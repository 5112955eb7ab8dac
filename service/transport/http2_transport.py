"""gRPC transport on our own HTTP/2: listening sockets, connections, graceful shutdown."""

import asyncio
import logging
import random
import socket
from collections.abc import Callable
from contextlib import suppress

from service.api.admin import AdminServicer
from service.api.servicer import Servicer
from service.errors import TooLarge, Unimplemented, shortened
from service.models.repository import Models
from service.observe.telemetry import Telemetry
from service.settings import Settings
from service.transport.addresses import BACKLOG, Shared, accept_from, exclusive_sockets
from service.transport.dispatch import Dispatcher
from service.transport.grpc_call import GrpcCall, refuse, refuse_non_grpc
from service.transport.health import Health
from service.transport.http2.connection import Connection
from service.transport.http2.headers import MAX_HEADER_LIST_BYTES
from service.transport.http2.stream import Stream
from service.transport.services import services
from service.transport.tls import TlsFiles

_log = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 10.0
# Time that a drain gives to calls that it does not wait for, such as health watches.
_UNCOUNTED_SECONDS = 1.0
# Time that a drain gives to callers to read the last replies and close their connections.
_LINGER_SECONDS = 5.0
# Relative jitter of the maximum age: connections opened together are not shut down together.
_AGE_JITTER = 0.1


class Http2Transport:
    """`Transport` on our own HTTP/2; also the `Listener` of its connections.

    Args:
        servicer: Implements LatentService.
        admin: Implements AdminService; None leaves it out.
        settings: Address, limits, reflection.
        authenticate: Raises Unauthenticated for a wrong `authorization` of a call.
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
        authenticate: Callable[[str | None], None],
        tls: TlsFiles | None,
        telemetry: Telemetry,
        shared: Shared | None = None,
    ):
        self._health = Health()
        self._dispatcher = Dispatcher(authenticate, telemetry)
        self._tls = tls
        self._max_bytes = settings.max_message_bytes
        self._max_held_bytes = max(settings.queue_bytes, settings.max_message_bytes)
        self._held_bytes = 0
        self._age = settings.max_connection_age_seconds
        rpcs = services(servicer, admin, self._health, reflection=settings.reflection)
        self._rpcs = {rpc.path: rpc for rpc in rpcs}
        self._connections: dict[Connection, asyncio.TimerHandle] = {}
        self._no_connections = asyncio.Event()
        self._no_connections.set()
        self._accepting: list[asyncio.Task[None]] = []
        self._opening: set[asyncio.Task[None]] = set()
        self._sockets: list[socket.socket] = []
        self._channel: socket.socket | None = None
        if shared is None:
            self._sockets = exclusive_sockets(settings.host, settings.grpc_port)
            self.port: int = self._sockets[0].getsockname()[1]
        else:
            self._channel = shared.channel
            self.port = settings.grpc_port

    async def start(self) -> None:
        """Begins to accept calls; health is NOT_SERVING until `show` is called."""
        for sock in self._sockets:
            sock.listen(BACKLOG)
            self._accepting.append(asyncio.create_task(accept_from(sock, self._take)))
        if self._channel is not None:
            asyncio.get_running_loop().add_reader(self._channel, self._receive)

    async def show(self, models: Models, *, device_ok: bool = True) -> None:
        """Updates the health of each model, and of the server (that of its default model).

        Args:
            models: Models that are loaded.
            device_ok: Whether the device works.
        """
        self._health.show(models, device_ok=device_ok)

    async def drain(self, seconds: float, force_stop: asyncio.Event) -> None:
        """Shuts down: health is NOT_SERVING, new calls are refused, running ones may finish.

        Args:
            seconds: Time limit; calls that take longer are cancelled.
            force_stop: Once set, running calls are cancelled at once.
        """
        self._health.drain()
        self._dispatcher.draining = True
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for sock in self._sockets:
            sock.close()
        if self._channel is not None:
            self._receive()
            self._close_channel()
        for connection in list(self._connections):
            connection.shut_down()
        forced = asyncio.create_task(force_stop.wait())
        finishing = asyncio.create_task(self._dispatcher.finished())
        await asyncio.wait(
            (forced, finishing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if finishing.done() and not force_stop.is_set():
            # Limited time to send the last replies: health watches never end by themselves.
            leaving = asyncio.create_task(self._no_connections.wait())
            await asyncio.wait(
                (forced, leaving),
                timeout=min(seconds, _UNCOUNTED_SECONDS),
                return_when=asyncio.FIRST_COMPLETED,
            )
            leaving.cancel()
        forced.cancel()
        finishing.cancel()
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._connections):
            connection.close()
        # Cancelled calls end, and are counted, in the next event-loop iterations.
        await self._dispatcher.finished()
        if not force_stop.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, _LINGER_SECONDS)):
                    await self._no_connections.wait()

    # Called by connections.

    def made(self, connection: Connection) -> None:
        """Starts the maximum-age timer of a new connection."""
        age = self._age * random.uniform(1 - _AGE_JITTER, 1 + _AGE_JITTER)
        self._connections[connection] = asyncio.get_running_loop().call_later(
            age, connection.shut_down
        )
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
        stream.receiver = GrpcCall(stream, rpc, self._dispatcher, self._max_bytes, self._hold)

    def lost(self, connection: Connection) -> None:
        """Removes a closed connection from the table."""
        timer = self._connections.pop(connection, None)
        if timer is not None:
            timer.cancel()
        if not self._connections:
            self._no_connections.set()

    def _hold(self, count: int) -> None:
        """Adds to the bytes that incomplete requests hold in total; one request alone always fits.

        Raises:
            TooLarge: The total exceeds the limit.
        """
        self._held_bytes += count
        if count > 0 and self._held_bytes > self._max_held_bytes:
            raise TooLarge(
                f"unfinished requests: {self._held_bytes} bytes, wanted at most "
                f"{self._max_held_bytes} (see max_queue_bytes)"
            )

    # Connections.

    def _take(self, accepted: socket.socket) -> None:
        task = asyncio.create_task(self._open(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _receive(self) -> None:
        """Receives the connections that the supervisor has accepted for this worker."""
        assert self._channel is not None
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._close_channel()
                return
            for descriptor in descriptors:
                accepted = socket.socket(fileno=descriptor)
                accepted.setblocking(False)
                with suppress(OSError):
                    self._channel.send(b"t")  # acknowledges it, else another worker gets it
                self._take(accepted)

    def _close_channel(self) -> None:
        if self._channel is not None:
            asyncio.get_running_loop().remove_reader(self._channel)
            self._channel.close()
            self._channel = None

    async def _open(self, accepted: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        connection = Connection(self)
        context = None if self._tls is None else self._tls.ssl_context()
        try:
            await loop.connect_accepted_socket(
                lambda: connection,
                accepted,
                ssl=context,
                ssl_handshake_timeout=None if context is None else _HANDSHAKE_SECONDS,
            )
        except (TimeoutError, OSError, EOFError) as error:
            accepted.close()
            _log.debug("connection: %s", error)
            return
        if self._dispatcher.draining:
            connection.shut_down()


def _is_grpc(content_type: str) -> bool:
    return content_type in ("application/grpc", "application/grpc+proto") or (
        content_type.startswith(("application/grpc;", "application/grpc+proto;"))
    )
