"""gRPC on our own HTTP/2: its ports, its connections, and how they end."""

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
from service.transport.grpc_call import GrpcCall, refuse, refuse_other
from service.transport.health import Health
from service.transport.http2.connection import Connection
from service.transport.http2.headers import MAX_HEADER_LIST_BYTES
from service.transport.http2.stream import Stream
from service.transport.services import services
from service.transport.tls import TlsFiles

_log = logging.getLogger(__name__)

_HANDSHAKE_SECONDS = 10.0
# For what is not a call of ours, such as a watch of the health.
_STREAMS_SECONDS = 1.0
# What callers may take to read the last replies, and to close.
_LAST_SECONDS = 5.0
# Connections of one age do not all end at once.
_JITTER = 0.1


class Http2Transport:
    """A gRPC server with health and, if asked, AdminService and reflection.

    Args:
        servicer: Answers the calls to LatentService.
        admin: Answers those to AdminService, or None not to serve it.
        settings: Address, limits, reflection.
        authenticate: Raises Unauthenticated where a call's `authorization` is not right.
        tls: Certificate and key, or None for a plain port.
        telemetry: Told of every call.
        shared: How this process gets its share of the connections to a port; None to have
            the port alone.

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
        shared: Shared | None = None,
    ):
        self._health = Health()
        self._dispatcher = Dispatcher(authenticate, telemetry)
        self._tls = tls
        self._max_bytes = settings.max_message_bytes
        self._most_held = max(settings.max_queue_bytes, settings.max_message_bytes)
        self._held_bytes = 0
        self._age = settings.max_connection_age_seconds
        rpcs = services(servicer, admin, self._health, reflection=settings.reflection)
        self._rpcs = {rpc.path: rpc for rpc in rpcs}
        self._connections: dict[Connection, asyncio.TimerHandle] = {}
        self._none_left = asyncio.Event()
        self._none_left.set()
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
        """Begins to answer; health is NOT_SERVING until `show`."""
        for each in self._sockets:
            each.listen(BACKLOG)
            self._accepting.append(asyncio.create_task(accept_from(each, self._take)))
        if self._channel is not None:
            asyncio.get_running_loop().add_reader(self._channel, self._take_dealt)

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
        for task in self._accepting:
            task.cancel()
        await asyncio.gather(*self._accepting, return_exceptions=True)
        for each in self._sockets:
            each.close()
        if self._channel is not None:
            self._take_dealt()
            self._leave_channel()
        for connection in list(self._connections):
            connection.shut_down()
        hurrying = asyncio.create_task(hurry.wait())
        finishing = asyncio.create_task(self._dispatcher.finished())
        await asyncio.wait(
            (hurrying, finishing), timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        if finishing.done() and not hurry.is_set():
            # The last replies still have to get out; a watch never ends by itself.
            leaving = asyncio.create_task(self._none_left.wait())
            await asyncio.wait(
                (hurrying, leaving),
                timeout=min(seconds, _STREAMS_SECONDS),
                return_when=asyncio.FIRST_COMPLETED,
            )
            leaving.cancel()
        hurrying.cancel()
        finishing.cancel()
        for task in list(self._opening):
            task.cancel()
        for connection in list(self._connections):
            connection.close()
        # Their tasks end in the next turns of the loop, and tell that they were cancelled.
        await self._dispatcher.finished()
        if not hurry.is_set():
            with suppress(TimeoutError):
                async with asyncio.timeout(min(seconds, _LAST_SECONDS)):
                    await self._none_left.wait()

    # What connections call.

    def made(self, connection: Connection) -> None:
        """There is a new connection."""
        age = self._age * random.uniform(1 - _JITTER, 1 + _JITTER)
        self._connections[connection] = asyncio.get_running_loop().call_later(
            age, connection.shut_down
        )
        self._none_left.clear()

    def accept(self, stream: Stream) -> None:
        """Sets the receiver of a new request."""
        head = stream.head
        if head.method != "POST" or not _is_grpc(head.fields.get("content-type", "")):
            refuse_other(stream)
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
        """A connection is no more."""
        timer = self._connections.pop(connection, None)
        if timer is not None:
            timer.cancel()
        if not self._connections:
            self._none_left.set()

    def _hold(self, count: int) -> None:
        """Bounds what unfinished requests hold, all together; one alone is always let in."""
        self._held_bytes += count
        if count > 0 and self._held_bytes > self._most_held:
            raise TooLarge(
                f"unfinished requests: {self._held_bytes} bytes, wanted at most "
                f"{self._most_held} (see max_queue_bytes)"
            )

    # Connections.

    def _take(self, accepted: socket.socket) -> None:
        task = asyncio.create_task(self._open(accepted))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    def _take_dealt(self) -> None:
        """Takes the connections that the supervisor has accepted for this process."""
        assert self._channel is not None
        while True:
            try:
                data, descriptors, _, _ = socket.recv_fds(self._channel, 1, 1)
            except BlockingIOError:
                return
            except OSError:
                data, descriptors = b"", []
            if not data:
                self._leave_channel()
                return
            for each in descriptors:
                accepted = socket.socket(fileno=each)
                accepted.setblocking(False)
                with suppress(OSError):
                    self._channel.send(b"t")  # until then it would go to another one
                self._take(accepted)

    def _leave_channel(self) -> None:
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
