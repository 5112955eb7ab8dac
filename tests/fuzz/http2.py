"""Fuzzes the server's HTTP/2 and the gRPC over it, with a stub for a servicer.

    .venv/bin/pip install -e '.[fuzz]'
    mkdir -p .cache/fuzz
    .venv/bin/python -m tests.fuzz.http2 .cache/fuzz tests/fuzz/corpus \
      -max_total_time=600 -max_len=4096

It mutates the inputs of the corpus with libFuzzer, whose options it accepts, and collects inputs
with new coverage in the first folder; `-max_total_time` is in seconds. An input is one byte that
says how the input is split and scheduled, followed by what a client sends: after its connection
preface, or including it. `make test-slow` and `make test-long` run this (tests/fuzz/test_http2.py),
and docs/testing.md says what it has found. Without atheris the corpus can be played, not mutated.

Findings are: an exception out of the connection or in the event loop, INTERNAL_ERROR sent to the
client, frames that do not parse, and anything that is left once the connection is lost: tasks,
timers, calls counted as running, bytes counted as held.
"""

import asyncio
import contextlib
import importlib.util
import logging
import random
import re
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

HAS_ATHERIS = importlib.util.find_spec("atheris") is not None
if HAS_ATHERIS:
    import atheris

with (
    atheris.instrument_imports(include=["service.transport", "hpack"])
    if HAS_ATHERIS
    else contextlib.nullcontext()
):
    from latentserve.v1 import latent_service_pb2 as pb
    from service.engine.admission import Admission
    from service.errors import NotReady
    from service.observe.metrics import Metrics
    from service.observe.telemetry import Telemetry
    from service.settings import Settings
    from service.transport.http2.connection import Connection
    from service.transport.http2.frames import PREFACE
    from service.transport.http2_transport import Http2Transport, _cut
    from tests.fuzz.seeds import floods, sessions
    from tests.support import http2_peer as peer

_HANDSHAKE = PREFACE + peer.settings_frame((peer.INITIAL_WINDOW, 100))


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

    def close(self) -> None:
        """Releases the port, the event loop and the log handler."""
        logging.getLogger().removeHandler(self.findings)
        self.loop.run_until_complete(self._close())
        self.loop.close()

    async def _close(self) -> None:
        await self.transport.drain(0, asyncio.Event())
        await asyncio.sleep(0)

    async def _make(self) -> None:
        self.admission = Admission(2**16, 8192)
        settings = Settings(grpc_port=0, max_message_bytes=4096, max_queue_bytes=8192)
        self.transport = Http2Transport(
            Stub(),  # type: ignore[arg-type]
            None,
            settings,
            authenticate=lambda _authorization: "",
            capacity=self.admission,
            tls=None,
            telemetry=Telemetry(Metrics(), None, lambda *_: None),
        )

    def one(self, data: bytes) -> None:
        """Runs one input."""
        if data:
            handshake = b"" if data[0] & 0x84 == 0x84 else _HANDSHAKE
            self.loop.run_until_complete(self._one(data[0], handshake, data[1:]))

    async def _one(self, how: int, handshake: bytes, data: bytes) -> None:
        transport = peer.RecordingTransport()
        connection = Connection(self.transport, replies=self.transport._unread)
        transport.protocol = connection
        connection.connection_made(transport)
        for number, piece in enumerate(_pieces(how, handshake, data)):
            if transport.closing:
                break
            if how & 16 and number % 4 == 1:
                transport.buffered = 100_000
                connection.pause_writing()
            if how & 32 and number == 3:
                connection.shut_down()
            if how & 32 and number == 7:
                for stream in connection.streams:
                    _cut(stream, NotReady("cut"))
            if piece:
                connection.data_received(piece)
            for _ in range(4 if how & 64 else 0):
                await asyncio.sleep(0)
            connection.resume_writing()
        for _ in range(6):
            await asyncio.sleep(0)
        # An HTTP/1.1 request is refused in HTTP/1.1.
        refused = not handshake and transport.sent.startswith(b"HTTP/1.1 ")
        sent = [] if refused else peer.parsed(bytes(transport.sent))
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
        assert not self.admission.size, self.admission.size
        self.transport._unread.close()
        self.transport._uploads.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        assert not tasks, tasks
        scheduled: Any = self.loop
        timers = [timer for timer in scheduled._scheduled if not timer.cancelled()]
        assert not timers, timers
        scheduled._scheduled.clear()
        scheduled._timer_cancelled_count = 0
        assert not self.transport._connections
        assert not self.transport._uploads._held, self.transport._uploads._held
        assert not self.transport._dispatcher._running
        assert not self.problems, self.problems
        assert not self.findings.lines, self.findings.lines


def _pieces(how: int, handshake: bytes, data: bytes) -> Iterator[bytes]:
    """Splits the input by length, or after every few frames."""
    if not how & 128:
        data = handshake + data
        step = (1 << (how & 15)) if how & 15 else len(data)
        yield from (data[start : start + step] for start in range(0, len(data), step))
        return
    yield handshake
    frames, rest = _frames(data)
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


_PIECES = [
    peer.raw_frame(*frame) for session in sessions().values() for frame in peer.parsed(session)
]


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
    """Plays sessions with every way to split them, and floods, and then fuzzes."""
    target = Target()
    for session in sessions().values():
        for how in range(256):
            target.one(bytes((how,)) + session)
    for flood in floods().values():
        for how in (0, 9, 16, 64, 128, 176):
            target.one(bytes((how,)) + flood)
    atheris.Setup(sys.argv, target.one, custom_mutator=_mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
