"""Fuzzes the server's HTTP/2 and the gRPC over it, under a servicer that answers nothing real.

    .venv/bin/pip install -e '.[fuzz]'
    .venv/bin/python -m tests.fuzz.http2 --seeds corpus
    .venv/bin/python -m tests.fuzz.http2 corpus -max_total_time=600 -max_len=4096

The first command makes a corpus of valid sessions, the second changes them as libFuzzer
does, which also knows the other options; `-max_total_time` is in seconds. An input is one
byte that says how it is cut, and what a client sends after its greeting.

A finding is: an exception out of the connection or in the loop, an internal error sent to the
peer, frames that do not parse, or anything left once the connection is lost: tasks, timers,
calls that are counted as running, bytes that are counted as held.
"""

import asyncio
import logging
import random
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

_GREETING = PREFACE + peer.settings((peer.INITIAL_WINDOW, 100))
_LATENT = "/latentserve.v1.LatentService/"


class Findings(logging.Handler):
    """What was logged as an error: a bug that was caught."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(logging.Formatter().format(record))


class Reply:
    """Larger than the windows that its callers begin with; a piece out of place is seen."""

    BYTES = bytes(range(250))

    def SerializeToString(self) -> bytes:  # noqa: N802 - protobuf's name
        return self.BYTES


class Stub:
    """Answers as often as it is asked, and a server stream three times."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        service = pb.DESCRIPTOR.services_by_name["LatentService"]
        method = next(each for each in service.methods if _snake(each.name) == name)

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
    return "".join(f"_{each.lower()}" if each.isupper() else each for each in name).lstrip("_")


class Target:
    """A server without a port that is listened on, and the loop that it is in."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self.problems: list[Any] = []
        self.loop.set_exception_handler(lambda _loop, told: self.problems.append(told))
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
            self.loop.run_until_complete(self._one(data[0], _GREETING + data[1:]))

    async def _one(self, how: int, data: bytes) -> None:
        connection, wire = Connection(self.transport), peer.Wire()
        wire.protocol = connection
        connection.connection_made(wire)
        for number, piece in enumerate(_pieces(how, data)):
            if wire.closing:
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
        sent = peer.parsed(bytes(wire.sent))
        for each in sent:
            assert each.kind != peer.GOAWAY or each.code != peer.INTERNAL_ERROR, each
        for number in {each.stream for each in sent if each.kind == peer.DATA}:
            _check_body(b"".join(e.payload for e in sent if e[0] == 0 and e.stream == number))
        if not wire.closing:
            wire.closing = True
            connection.connection_lost(None)
        for _ in range(6):
            await asyncio.sleep(0)
        self._nothing_left()

    def _nothing_left(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        assert not others, others
        scheduled: Any = self.loop
        left = [each for each in scheduled._scheduled if not each.cancelled()]
        assert not left, left
        scheduled._scheduled.clear()
        scheduled._timer_cancelled_count = 0
        assert not self.transport._connections
        assert not self.transport._held_bytes, self.transport._held_bytes
        assert not self.transport._dispatcher._running
        assert not self.problems, self.problems
        assert not self.findings.lines, self.findings.lines


def _pieces(how: int, data: bytes) -> Iterator[bytes]:
    """Cuts by length, or after so many frames."""
    if not how & 128:
        step = (1 << (how & 15)) if how & 15 else len(data)
        yield from (data[start : start + step] for start in range(0, len(data), step))
        return
    yield data[: len(_GREETING)]
    frames, rest = _frames(data[len(_GREETING) :])
    step = (how & 3) + 1
    for start in range(0, len(frames), step):
        yield b"".join(frames[start : start + step])
    yield rest


def _frames(data: bytes) -> tuple[list[bytes], bytes]:
    """Those that are whole, and the rest."""
    frames = []
    while len(data) >= 9 and (stop := 9 + int.from_bytes(data[:3], "big")) <= len(data):
        frames.append(data[:stop])
        data = data[stop:]
    return frames, data


def _check_body(body: bytes) -> None:
    reply = peer.message(Reply.BYTES)
    if body[:5] == reply[:5]:  # those of health are others
        times = len(body) // len(reply) + 1
        assert (reply * times).startswith(body), body


# -------------------------------------------------------------- what is tried


def _sessions() -> list[bytes]:
    """Valid ones, and frames that matter."""
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
            session += peer.frame(
                peer.HEADERS, peer.END_HEADERS, number, encoder.encode(peer.request(path, **more))
            )
            joined = b"".join(messages)
            session += peer.frame(peer.DATA, 0, number, joined[:3])
            session += peer.frame(peer.DATA, peer.END_STREAM, number, joined[3:])
        result.append(session + peer.window_update(1, 1000) + peer.window_update(0, 5))
    block = peer.literal(peer.request(f"{_LATENT}GetServerInfo"))
    result += [
        b"\0" + peer.frame(peer.HEADERS, 0x1, 1, block[:9])
        + peer.frame(peer.CONTINUATION, 0x4, 1, block[9:]),
        b"\0" + peer.frame(peer.HEADERS, 0x2C, 1, b"\x02" + bytes(5) + block + bytes(2))
        + peer.frame(peer.DATA, 0x8, 1, b"\x02" + empty + bytes(2))
        + peer.headers(1, [("x-a", "1")], 0x5),
        b"\0" + peer.headers(1, peer.request(f"{_LATENT}EncodeStream")) + peer.rst_stream(1)
        + peer.settings((peer.INITIAL_WINDOW, 0), (peer.HEADER_TABLE_SIZE, 0))
        + peer.frame(peer.PING, 0, 0, bytes(8)) + peer.frame(peer.GOAWAY, 0, 0, bytes(8)),
        b"\0" + peer.frame(peer.PING, 1, 0, b"retiring")
        + peer.frame(peer.PRIORITY, 0, 1, bytes(5)) + peer.settings((peer.MAX_FRAME, 20000)),
        b"\0" + peer.window_update(1, 9) + peer.window_update(3, 120) + peer.window_update(0, 1)
        + peer.settings((peer.INITIAL_WINDOW, 7)) + peer.settings((peer.INITIAL_WINDOW, 1000)),
    ]  # fmt: skip
    return result


_PIECES = [
    peer.frame(*each) for session in _sessions() for each in peer.parsed(session[1:])
]  # fmt: skip


def _mutate(data: bytes, most: int, seed: int) -> bytes:
    """Changes frames, of which what libFuzzer does blindly leaves few."""
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
        frames[at] = peer.frame(kind, flags, stream, frames[at][9:])
    else:
        kind, flags, stream = struct.unpack(">BBI", frames[at][3:9])
        payload = bytes(atheris.Mutate(frames[at][9:], 200))
        frames[at] = peer.frame(kind, flags, stream, payload)
    return (how + b"".join(frames) + rest)[:most]


def main() -> None:
    """Makes seeds or fuzzes."""
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
