"""A peer for the server's HTTP/2: a connection without sockets, and frames by hand."""

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
    """A frame that was sent."""

    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error of RST_STREAM or GOAWAY."""
        return int.from_bytes(self.payload[4 * (self.kind == GOAWAY) :][:4], "big")


def frame(kind: int, flags: int = 0, stream: int = 0, payload: bytes = b"") -> bytes:
    """A frame, however wrong; written independently of the server's own code."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(*pairs: tuple[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *pair) for pair in pairs))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def rst_stream(stream: int, code: int = CANCEL) -> bytes:
    return frame(RST_STREAM, 0, stream, struct.pack(">I", code))


def request(path: str = "/a/b", **more: str) -> list[tuple[str, str]]:
    """The fields of a gRPC request."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "x")]
    fields += [("content-type", "application/grpc"), ("te", "trailers")]
    return fields + [(name.replace("_", "-"), value) for name, value in more.items()]


def literal(fields: Fields) -> bytes:
    """A header block that needs no table and leaves it as it is."""
    return hpack.Encoder().encode(
        [hpack.NeverIndexedHeaderTuple(*pair) for pair in fields], huffman=False
    )


def headers(stream: int, fields: Fields, flags: int = END_HEADERS) -> bytes:
    return frame(HEADERS, flags, stream, literal(fields))


def message(body: bytes, flag: int = 0) -> bytes:
    return bytes((flag,)) + len(body).to_bytes(4, "big") + body


def parsed(data: bytes) -> list[Frame]:
    """All frames of what was sent, which has to be whole frames."""
    result = []
    while data:
        length = int.from_bytes(data[:3], "big")
        kind, flags, stream = struct.unpack(">BBI", data[3:9])
        assert len(data) >= 9 + length, "a frame cut short"
        result.append(Frame(kind, flags, stream, data[9 : 9 + length]))
        data = data[9 + length :]
    return result


class Asked:
    """A request as its receiver sees it."""

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


class Wire(asyncio.Transport):
    """What the server writes; a peer that does not read is told by `pause`."""

    def __init__(self) -> None:
        super().__init__()
        self.sent = bytearray()
        self.protocol: Any = None
        self.closing = self.aborted = self.eof = False
        self.half_closes = False
        self.reading = True

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 4711) if name == "peername" else default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def write(self, data: Any) -> None:
        assert not self.closing, "written to after it was closed"
        self.sent += data

    def writelines(self, list_of_data: Any) -> None:
        for each in list_of_data:
            self.write(each)

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


class Session:
    """A connection, whoever listens, and what is sent to it by hand.

    Args:
        accept: Sets the receiver of a request; without it, `asked` has each by its stream.
        greet: Whether to say hello.
        options: Of the connection.
    """

    def __init__(self, accept: Callable[[Any], None] | None = None, **options: Any):
        self.asked: dict[int, Asked] = {}
        self.lost_connections: list[Any] = []
        self._accept = accept
        self._read = 0
        self.connection = Connection(self, **options)
        self.wire = Wire()
        self.wire.protocol = self.connection
        self.connection.connection_made(self.wire)

    # The listener.

    def accept(self, stream: Any) -> None:
        if self._accept is not None:
            self._accept(stream)
            return
        self.asked[stream.id] = stream.receiver = Asked(stream)

    def made(self, connection: Any) -> None:
        pass

    def lost(self, connection: Any) -> None:
        self.lost_connections.append(connection)

    # The peer.

    async def send(self, *data: bytes) -> list[Frame]:
        """Sends, and returns what has been sent since the last time."""
        for each in data:
            if not self.wire.closing:
                self.connection.data_received(each)
        return await self.answers()

    async def answers(self) -> list[Frame]:
        """What the server has sent since the last time."""
        for _ in range(4):
            await asyncio.sleep(0)
        data = bytes(self.wire.sent[self._read :])
        self._read = len(self.wire.sent)
        return parsed(data)

    async def greet(self, *pairs: tuple[int, int]) -> list[Frame]:
        return await self.send(PREFACE + settings(*pairs))

    async def ask(self, number: int = 1, *, ends: bool = True, **more: str) -> Asked:
        """Sends the headers of a request."""
        flags = END_HEADERS | (END_STREAM if ends else 0)
        await self.send(headers(number, request(**more), flags))
        return self.asked[number]

    @property
    def alive(self) -> bool:
        return not self.wire.closing


def connected(
    scenario: Callable[[Session], Awaitable[None]], *pairs: tuple[int, int], **options: Any
) -> None:
    """Runs a scenario with a connection that has been greeted, and sees that nothing is left."""

    async def run() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: problems.append(told))
        session = Session(**options)
        await session.greet(*pairs)
        await session.send(frame(SETTINGS, ACK))
        await scenario(session)
        await end(session)
        assert not problems

    asyncio.run(run())


async def end(session: Session) -> None:
    """Ends a connection, after which there must be no task and no timer."""
    if not session.lost_connections:
        session.wire.closing = True
        session.connection.connection_lost(None)
    for _ in range(10):
        await asyncio.sleep(0)
    assert len(session.lost_connections) == 1
    loop: Any = asyncio.get_running_loop()
    left = [each for each in loop._scheduled if not each.cancelled()]
    assert not left, left
    others = asyncio.all_tasks() - {asyncio.current_task()}
    assert not others, others
