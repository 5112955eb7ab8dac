"""Seed inputs of the HTTP/2 fuzzer: valid sessions, every frame type, connection prefaces, floods.

    .venv/bin/python -m tests.fuzz.seeds      # rewrites tests/fuzz/corpus

For the format of an input see `tests.fuzz.http2`. Corpus files that are not generated here are
inputs that once exposed a bug; they are kept so that they are tried first, and this command leaves
them alone. Floods are not in the corpus: inputs of their length would make the fuzzer 25 times
slower, so they are played unmutated.
"""

from pathlib import Path

import hpack

from latentserve.v1 import latent_service_pb2 as pb
from service.transport.http2.frames import PREFACE
from tests.support import http2_peer as peer

CORPUS = Path(__file__).parent / "corpus"
#: First byte of an input: not split; split after every frame; the same without a preface before it.
WHOLE, BY_FRAME, BARE = b"\0", b"\x80", b"\x84"
_LATENT = "/latentserve.v1.LatentService/"
_HEALTH = "/grpc.health.v1.Health/"
#: Frames in a flood: more than the rate limit of a connection admits at once.
_FLOOD = 1100

_EMPTY = peer.message(b"")
_SAMPLE = peer.message(pb.SampleRequest(count=2).SerializeToString())
_CALLS = {
    "unary": (f"{_LATENT}GetServerInfo", {}, [_EMPTY]),
    "deadline": (f"{_LATENT}Sample", {"grpc_timeout": "5S"}, [_SAMPLE]),
    "compressed": (
        f"{_LATENT}Sample",
        {"grpc_encoding": "gzip"},
        [peer.message(b"\x1f\x8b\x08\0", 1)],
    ),
    "server-stream": (f"{_LATENT}SampleStream", {}, [_SAMPLE]),
    "both-streams": (
        f"{_LATENT}EncodeStream",
        {"grpc_timeout": "100m"},
        [_EMPTY, _EMPTY, _SAMPLE],
    ),
    "content-length": (f"{_HEALTH}Check", {"content_length": "5"}, [_EMPTY]),
    "health-watch": (f"{_HEALTH}Watch", {}, [_EMPTY]),
    "no-method": ("/no/Method", {}, [_EMPTY]),
}


def sessions() -> dict[str, bytes]:
    """Valid sessions and notable frames by name, without the first byte and the preface."""
    encoder = hpack.Encoder()
    result = {}
    for name, (path, more, messages) in _CALLS.items():
        session = b""
        for number in (1, 3):
            block = encoder.encode(peer.request_fields(path, **more))
            session += peer.raw_frame(peer.HEADERS, peer.END_HEADERS, number, block)
            joined = b"".join(messages)
            session += peer.raw_frame(peer.DATA, 0, number, joined[:3])
            session += peer.raw_frame(peer.DATA, peer.END_STREAM, number, joined[3:])
        result[f"call-{name}"] = session + peer.window_update(1, 1000) + peer.window_update(0, 5)
    return result | {name: b"".join(frames) for name, frames in _frames().items()}


def _frames() -> dict[str, list[bytes]]:
    block = peer.literal(peer.request_fields(f"{_LATENT}GetServerInfo"))
    stream = peer.headers(1, peer.request_fields(f"{_LATENT}EncodeStream"))
    every_setting = [
        (peer.HEADER_TABLE_SIZE, 100), (peer.ENABLE_PUSH, 0), (peer.MAX_STREAMS, 1),
        (peer.INITIAL_WINDOW, 2**31 - 1), (peer.MAX_FRAME, 2**24 - 1), (peer.MAX_LIST, 9), (99, 1),
    ]  # fmt: skip
    return {
        "continuation": [
            peer.raw_frame(peer.HEADERS, 0x1, 1, block[:9]),
            peer.raw_frame(peer.CONTINUATION, 0x4, 1, block[9:]),
        ],
        "padded-prioritised-trailers": [
            peer.raw_frame(peer.HEADERS, 0x2C, 1, b"\x02" + bytes(5) + block + bytes(2)),
            peer.raw_frame(peer.DATA, 0x8, 1, b"\x02" + _EMPTY + bytes(2)),
            peer.headers(1, [("x-a", "1")], 0x5),
        ],
        "reset-ping-goaway": [
            stream,
            peer.rst_stream(1),
            peer.settings_frame((peer.INITIAL_WINDOW, 0), (peer.HEADER_TABLE_SIZE, 0)),
            peer.raw_frame(peer.PING, 0, 0, bytes(8)),
            peer.raw_frame(peer.GOAWAY, 0, 0, bytes(8)),
        ],
        "ping-acknowledgement-priority": [
            peer.raw_frame(peer.PING, 1, 0, b"retiring"),
            peer.raw_frame(peer.PRIORITY, 0, 1, bytes(5)),
            peer.settings_frame((peer.MAX_FRAME, 20000)),
        ],
        "windows": [
            peer.window_update(1, 9),
            peer.window_update(3, 120),
            peer.window_update(0, 1),
            peer.settings_frame((peer.INITIAL_WINDOW, 7)),
            peer.settings_frame((peer.INITIAL_WINDOW, 1000)),
        ],
        "all-settings": [
            peer.settings_frame(*every_setting),
            peer.raw_frame(peer.SETTINGS, peer.ACK),
        ],
        "push-promise": [peer.raw_frame(peer.PUSH_PROMISE, 0x4, 1, bytes(4) + block)],
        "unknown-type": [peer.raw_frame(0x77, 0xFF, 5, b"whatever")],
    }


def prefaces() -> dict[str, bytes]:
    """First bytes of a connection, valid and invalid."""
    return {
        "preface": PREFACE + peer.settings_frame((peer.INITIAL_WINDOW, 100)),
        "preface-without-settings": PREFACE + peer.window_update(0, 1),
        "preface-cut-short": PREFACE[:20],
        "http-1": b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n",
        "tls-hello": b"\x16\x03\x01\x00\x05hello",
    }


def floods() -> dict[str, bytes]:
    """Sessions that send more cheap frames than a connection accepts."""
    encoder = hpack.Encoder()
    fields = peer.request_fields(f"{_LATENT}EncodeStream")
    opened = peer.raw_frame(peer.HEADERS, peer.END_HEADERS, 1, encoder.encode(fields))
    resets = b""
    for number in range(_FLOOD):
        block = encoder.encode(fields)
        resets += peer.raw_frame(peer.HEADERS, peer.END_HEADERS, 2 * number + 3, block)
        resets += peer.rst_stream(2 * number + 3)
    return {
        "flood-pings": peer.raw_frame(peer.PING, 0, 0, bytes(8)) * _FLOOD,
        "flood-settings": peer.settings_frame() * _FLOOD,
        "flood-empty-data": opened + peer.raw_frame(peer.DATA, 0, 1) * _FLOOD,
        "flood-resets": opened + resets,
    }


def seeds() -> dict[str, bytes]:
    """The generated part of the corpus: content by file name."""
    return {name: WHOLE + session for name, session in sessions().items()} | {
        name: BARE + preface for name, preface in prefaces().items()
    }


def main() -> None:
    """Writes the corpus files."""
    CORPUS.mkdir(exist_ok=True)
    for name, seed in seeds().items():
        (CORPUS / name).write_bytes(seed)


if __name__ == "__main__":
    main()
