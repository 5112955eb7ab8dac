"""An HTTP/2 client that sends any frames, valid or not, to a `Connection` without a socket."""

import asyncio
import struct
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, NamedTuple

import hpack

from service.transport.http2.connection import Connection
from service.transport.http2.frames import PREFACE

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE = 0, 1, 2, 3, 4, 5
PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 6, 7, 8, 9
END_STREAM, ACK, END_HEADERS, PADDED, PRIORITISED = 0x1, 0x1, 0x4, 0x8, 0x20

PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL = 5, 6, 7, 8
COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 9, 11

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_STREAMS, INITIAL_WINDOW, MAX_FRAME, MAX_LIST = 1, 2, 3, 4, 5, 6

Fields = Iterable[tuple[str, str]]


class Frame(NamedTuple):
    """A frame that the server has sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """Error code of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[4 * (self.kind == GOAWAY) :][:4], "big")


def raw_frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame, valid or not; independent of the server's own code."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings_frame(*pairs: tuple[int, int]) -> bytes:
    return raw_frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return raw_frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    return raw_frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def request_fields(path: str = "/a/b", **more: str) -> list[tuple[str, str]]:
    """Header fields of a gRPC request; underscores in names become hyphens."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    return fields + [(name.replace("_", "-"), value) for name, value in more.items()]


def literal(fields: Fields) -> bytes:
    """A header block that neither uses nor changes the dynamic table."""
    return hpack.Encoder().encode(
        [hpack.NeverIndexedHeaderTuple(*pair) for pair in fields], huffman=False
    )


def headers(stream: int, fields: Fields, flags: int = END_HEADERS) -> bytes:
    return raw_frame(HEADERS, flags, stream, literal(fields))


def message(body: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(body).to_bytes(4, "big") + body


def parsed(data: bytes) -> list[Frame]:
    """Parses bytes that have to be whole frames."""
    result = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", data[3:9])
        assert len(data) >= 9 + length, "a frame cut short"
        result.append(Frame(kind, flags, stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return result


class Request:
    """A receiver that records what happens on its stream."""

    def __init__(self, stream: Any):
        self.stream = stream
        self.body = b""
        self.is_ended = self.is_sent = self.is_reset = False
        self.take: Callable[[bytes], None] = lambda chunk: stream.consumed(len(chunk))

    def on_data(self, chunk: bytes) -> None:
        assert chunk
        assert not self.is_ended
        self.body += chunk
        self.take(chunk)

    def on_end(self) -> None:
        assert not self.is_ended
        self.is_ended = True

    def on_sent(self) -> None:
        assert not self.is_sent
        assert not self.is_reset
        self.is_sent = True

    def on_reset(self) -> None:
        assert not self.is_sent
        assert not self.is_reset
        self.is_reset = True


class RecordingTransport(asyncio.Transport):
    """Keeps what the server writes, in `sent`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.protocol: Any = None
        self.closing = self.aborted = self.eof = False
        self.half_closes = False
        self.reading = True
        self.buffered = 0

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def write(self, data: Any) -> None:
        assert not self.closing, "written to after it was closed"
        self.sent += data

    def writelines(self, list_of_data: Any) -> None:
        for data in list_of_data:
            self.write(data)

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return self.half_closes

    def write_eof(self) -> None:
        assert not self.closing, "half-closed after it was closed"
        self.eof = True

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, None)

    def abort(self) -> None:
        self.aborted = True
        self.close()


class Peer:
    """The client's end of a connection, and its listener.

    Args:
        accept: Sets the receiver of a new stream; by default a `Request`, kept in `requests`
            by its stream identifier.
        options: Further arguments of `Connection`.
    """

    def __init__(self, accept: Callable[[Any], None] | None = None, **options: Any):
        self.requests: dict[int, Request] = {}
        self.lost_connections: list[Any] = []
        self._accept = accept
        self._read = 0
        self.connection = Connection(self, **options)
        self.transport = RecordingTransport()
        self.transport.protocol = self.connection
        self.connection.connection_made(self.transport)

    # As the listener.

    def accept(self, stream: Any) -> None:
        if self._accept is not None:
            self._accept(stream)
            return
        self.requests[stream.id] = stream.receiver = Request(stream)

    def made(self, connection: Any) -> None:
        pass

    def lost(self, connection: Any) -> None:
        self.lost_connections.append(connection)

    # As the client.

    async def send(self, *data: bytes) -> list[Frame]:
        """Sends bytes, and returns what the server has sent since the last call."""
        for piece in data:
            if not self.transport.closing:
                self.connection.data_received(piece)
        return await self.receive()

    async def receive(self) -> list[Frame]:
        """Returns what the server has sent since the last call."""
        for _ in range(4):
            await asyncio.sleep(0)
        data = bytes(self.transport.sent[self._read :])
        self._read = len(self.transport.sent)
        return parsed(data)

    async def shake_hands(self, *pairs: tuple[int, int]) -> list[Frame]:
        """Sends the client's connection preface with some settings."""
        return await self.send(PREFACE + settings_frame(*pairs))

    async def open(self, stream: int = 1, *, ends: bool = True, **more: str) -> Request:
        """Sends the header block of a request."""
        flags = END_HEADERS | (END_STREAM if ends else 0)
        await self.send(headers(stream, request_fields(**more), flags))
        return self.requests[stream]

    @property
    def alive(self) -> bool:
        return not self.transport.closing


def connected(
    scenario: Callable[[Peer], Awaitable[None]], *pairs: tuple[int, int], **options: Any
) -> None:
    """Runs a scenario after the handshake, and checks that nothing is left after it."""

    async def run() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: problems.append(context)
        )
        peer = Peer(**options)
        await peer.shake_hands(*pairs)
        await peer.send(raw_frame(SETTINGS, ACK))
        await scenario(peer)
        await disconnect(peer)
        assert not problems

    asyncio.run(run())


async def disconnect(peer: Peer) -> None:
    """Closes the connection, and checks that no task and no timer is left."""
    if not peer.lost_connections:
        peer.transport.closing = True
        peer.connection.connection_lost(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(peer.lost_connections) == 1
    loop: Any = asyncio.get_running_loop()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    assert not timers, timers
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    assert not tasks, tasks
