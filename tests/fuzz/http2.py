"""Fuzzes the server's HTTP/2 and the gRPC over it, with a stub for a servicer.

    .venv/bin/pip install -e '.[fuzz]'
    .venv/bin/python -m tests.fuzz.http2 --seeds corpus
    .venv/bin/python -m tests.fuzz.http2 corpus -max_total_time=600 -max_len=4096

The first command writes a corpus of valid sessions. The second one mutates them with libFuzzer,
whose options it accepts; `-max_total_time` is in seconds. An input is one byte that says how the
input is split and scheduled, followed by what a client sends after its connection preface.

Findings are: an exception out of the connection or in the event loop, INTERNAL_ERROR sent to the
client, frames that do not parse, and anything that is left once the connection is lost: tasks,
timers, calls counted as running, bytes counted as held.
"""

import asyncio
import logging
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import atheris

with atheris.instrument_imports(include=["service.transport", "hpack"]):
    import hpack

    from latentserve.v1 import latent_service_pb2 as pb
    from service.observe.metrics import Metrics
    from service.observe.telemetry import Telemetry
    from service.settings import Settings
    from service.transport.http2.connection import Connection
    from service.transport.http2.frames import PREFACE
    from service.transport.http2_transport import Http2Transport
    from tests.support import http2_peer as peer

_HANDSHAKE = PREFACE + peer.settings_frame((peer.INITIAL_WINDOW, 100))
_LATENT = "/latentserve.v1.LatentService/"


class Findings(logging.Handler):
    """Collects logged errors: bugs that were caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


class Reply:
    """A reply larger than the initial window; a misplaced piece makes it differ."""

    BYTES = bytes(range(250))

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self.BYTES


class Stub:
    """A servicer: one reply per request, three on a server stream."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        service = pb.DESCRIPTOR.services_by_name["LatentService"]
        methods = {_snake(method.name): method for method in service.methods}
        if name not in methods:
            raise AttributeError(name)
        method = methods[name]

        async def unary(_request: Any, _call: Any) -> Any:
            await asyncio.sleep(0)
            return Reply()

        async def stream(requests: Any, _call: Any) -> Any:
            if method.client_streaming:
                async for _ in requests:
                    yield Reply()
            else:
                for _ in range(3):
                    yield Reply()
                    await asyncio.sleep(0)

        return stream if method.server_streaming else unary


def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


class Target:
    """A server that does not listen, and its event loop."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.problems: list[Any] = []
        self.loop.set_exception_handler(lambda _loop, context: self.problems.append(context))
        self.findings = Findings()
        logging.getLogger().addHandler(self.findings)
        self.loop.run_until_complete(self._make())

    async def _make(self) -> None:
        settings = Settings(grpc_port=0, max_message_bytes=4096, max_queue_bytes=8192)
        self.transport = Http2Transport(
            Stub(),  # type: ignore[arg-type]
            None,
            settings,
            authenticate=lambda _authorization: None,
            tls=None,
            telemetry=Telemetry(Metrics(), None, lambda *_: None),
        )

    def one(self, data: bytes) -> None:
        """Runs one input."""
        if data:
            self.loop.run_until_complete(self._one(data[0], _HANDSHAKE + data[1:]))

    async def _one(self, how: int, data: bytes) -> None:
        connection, transport = Connection(self.transport), peer.RecordingTransport()
        transport.protocol = connection
        connection.connection_made(transport)
        for number, piece in enumerate(_pieces(how, data)):
            if transport.closing:
                break
            if how & 16 and number % 4 == 1:
                connection.pause_writing()
            if how & 32 and number == 3:
                connection.shut_down()
            if piece:
                connection.data_received(piece)
            for _ in range(4 if how & 64 else 0):
                await asyncio.sleep(0)
            connection.resume_writing()
        for _ in range(6):
            await asyncio.sleep(0)
        sent = peer.parsed(bytes(transport.sent))
        bodies: dict[int, bytes] = {}
        for frame in sent:
            assert frame.kind != peer.GOAWAY or frame.code != peer.INTERNAL_ERROR, frame
            if frame.kind == peer.DATA:
                bodies[frame.stream] = bodies.get(frame.stream, b"") + frame.payload
        for body in bodies.values():
            _check_body(body)
        if not transport.closing:
            transport.closing = True
            connection.connection_lost(None)
        for _ in range(6):
            await asyncio.sleep(0)
        self._nothing_left()

    def _nothing_left(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, tasks
        scheduled: Any = self.loop
        timers = [timer for timer in scheduled._scheduled if not timer.cancelled()]
        assert not timers, timers
        scheduled._scheduled.clear()
        scheduled._timer_cancelled_count = 0
        assert not self.transport._connections
        assert not self.transport._held_bytes, self.transport._held_bytes
        assert not self.transport._dispatcher._running
        assert not self.problems, self.problems
        assert not self.findings.lines, self.findings.lines


def _pieces(how: int, data: bytes) -> Iterator[bytes]:
    """Splits the input by length, or after every few frames."""
    if not how & 128:
        step = (1 << (how & 15)) if how & 15 else len(data)
        yield from (data[start : start + step] for start in range(0, len(data), step))
        return
    yield data[: len(_HANDSHAKE)]
    frames, rest = _frames(data[len(_HANDSHAKE) :])
    step = (how & 3) + 1
    for start in range(0, len(frames), step):
        yield b"".join(frames[start : start + step])
    yield rest


def _frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Splits off the frames that are complete; returns them and the rest."""
    frames = []
    while len(data) >= 9 and (stop := 9 + int.from_bytes(data[:3], "big")) <= len(data):
        frames.append(data[:stop])
        data = data[stop:]
    return frames, data


def _check_body(body: bytes) -> None:
    reply = peer.message(Reply.BYTES)
    if body[:5] == reply[:5]:  # else a reply of the health service
        times = len(body) // len(reply) + 1
        assert (reply * times).startswith(body), body


# ---------------------------------------------------------------------- inputs


def _sessions() -> list[bytes]:
    """Valid sessions with every kind of frame."""
    encoder = hpack.Encoder()
    health = "/grpc.health.v1.Health/"
    empty, body = peer.message(b""), peer.message(pb.SampleRequest(count=2).SerializeToString())
    calls = [
        (f"{_LATENT}GetServerInfo", {}, [empty]),
        (f"{_LATENT}Sample", {"grpc_timeout": "5S"}, [body]),
        (f"{_LATENT}Sample", {"grpc_encoding": "gzip"}, [peer.message(b"\x1f\x8b\x08\0", 1)]),
        (f"{_LATENT}SampleStream", {}, [body]),
        (f"{_LATENT}EncodeStream", {"grpc_timeout": "100m"}, [empty, empty, body]),
        (f"{health}Check", {"content_length": "5"}, [empty]),
        (f"{health}Watch", {}, [empty]),
        ("/no/Method", {}, [empty]),
    ]
    result = []
    for path, more, messages in calls:
        session = b"\0"
        for number in (1, 3):
            block = encoder.encode(peer.request_fields(path, **more))
            session += peer.raw_frame(peer.HEADERS, peer.END_HEADERS, number, block)
            joined = b"".join(messages)
            session += peer.raw_frame(peer.DATA, 0, number, joined[:3])
            session += peer.raw_frame(peer.DATA, peer.END_STREAM, number, joined[3:])
        result.append(session + peer.window_update(1, 1000) + peer.window_update(0, 5))
    block = peer.literal(peer.request_fields(f"{_LATENT}GetServerInfo"))
    result += [
        b"\0" + peer.raw_frame(peer.HEADERS, 0x1, 1, block[:9])
        + peer.raw_frame(peer.CONTINUATION, 0x4, 1, block[9:]),
        b"\0" + peer.raw_frame(peer.HEADERS, 0x2C, 1, b"\x02" + bytes(5) + block + bytes(2))
        + peer.raw_frame(peer.DATA, 0x8, 1, b"\x02" + empty + bytes(2))
        + peer.headers(1, [("x-a", "1")], 0x5),
        b"\0" + peer.headers(1, peer.request_fields(f"{_LATENT}EncodeStream")) + peer.rst_stream(1)
        + peer.settings_frame((peer.INITIAL_WINDOW, 0), (peer.HEADER_TABLE_SIZE, 0))
        + peer.raw_frame(peer.PING, 0, 0, bytes(8)) + peer.raw_frame(peer.GOAWAY, 0, 0, bytes(8)),
        b"\0" + peer.raw_frame(peer.PING, 1, 0, b"retiring")
        + peer.raw_frame(peer.PRIORITY, 0, 1, bytes(5))
        + peer.settings_frame((peer.MAX_FRAME, 20000)),
        b"\0" + peer.window_update(1, 9) + peer.window_update(3, 120) + peer.window_update(0, 1)
        + peer.settings_frame((peer.INITIAL_WINDOW, 7))
        + peer.settings_frame((peer.INITIAL_WINDOW, 1000)),
    ]  # fmt: skip
    return result


_PIECES = [
    peer.raw_frame(*frame) for session in _sessions() for frame in peer.parsed(session[1:])
]  # fmt: skip


def _mutate(data: bytes, most: int, seed: int) -> bytes:
    """Mutates frame by frame: libFuzzer's own mutations leave few valid frames."""
    rng = random.Random(seed)
    if rng.random() < 0.2:
        return bytes(atheris.Mutate(data, most))
    how = data[:1] or b"\0"
    frames, rest = _frames(data[1:])
    at = rng.randrange(len(frames) + 1)
    what = rng.random()
    if what < 0.1:
        how = bytes((rng.randrange(256),))
    elif what < 0.4 or at == len(frames):
        frames.insert(at, rng.choice(_PIECES))
    elif what < 0.5:
        del frames[at]
    elif what < 0.6:
        frames.insert(rng.randrange(len(frames) + 1), frames[at])
    elif what < 0.8:
        kind, flags, stream = struct.unpack(">BBI", frames[at][3:9])
        which = rng.randrange(3)
        kind = rng.randrange(11) if which == 0 else kind
        flags ^= 1 << rng.randrange(8) if which == 1 else 0
        stream = rng.randrange(8) if which == 2 else stream
        frames[at] = peer.raw_frame(kind, flags, stream, frames[at][9:])
    else:
        kind, flags, stream = struct.unpack(">BBI", frames[at][3:9])
        payload = bytes(atheris.Mutate(frames[at][9:], 200))
        frames[at] = peer.raw_frame(kind, flags, stream, payload)
    return (how + b"".join(frames) + rest)[:most]


def main() -> None:
    """Writes the corpus, or fuzzes."""
    if sys.argv[1:2] == ["--seeds"]:
        folder = Path(sys.argv[2])
        folder.mkdir(parents=True, exist_ok=True)
        for number, session in enumerate(_sessions()):
            (folder / f"seed-{number:02}").write_bytes(session)
        return
    target = Target()
    for session in _sessions():
        for how in range(256):
            target.one(bytes((how,)) + session[1:])
    atheris.Setup(sys.argv, target.one, custom_mutator=_mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
