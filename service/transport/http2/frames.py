"""Frames of HTTP/2 as bytes (RFC 9113, sections 4 and 6)."""

import enum
import struct
from collections.abc import Iterator, Mapping
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD_BYTES: Final = 9
#: Every peer takes frames of this payload, and takes this window for granted.
LEAST_FRAME_BYTES: Final = 16_384
DEFAULT_WINDOW: Final = 65_535
#: Largest payload taken.
MAX_FRAME_BYTES: Final = 256 * 1024
MOST_WINDOW: Final = 2**31 - 1
LAST_STREAM: Final = 2**31 - 1

# Plain numbers: an enum's members cost a lookup each, and these are compared per frame.
DATA: Final = 0x0
HEADERS: Final = 0x1
PRIORITY: Final = 0x2
RST_STREAM: Final = 0x3
SETTINGS: Final = 0x4
PUSH_PROMISE: Final = 0x5
PING: Final = 0x6
GOAWAY: Final = 0x7
WINDOW_UPDATE: Final = 0x8
CONTINUATION: Final = 0x9

END_STREAM: Final = 0x1
ACK: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITISED: Final = 0x20

_HEAD: Final = struct.Struct(">HBBBL")
_SETTING: Final = struct.Struct(">HL")
_LONG: Final = struct.Struct(">L")


class ErrorCode(enum.IntEnum):
    """Why a stream or a connection ends (section 7)."""

    NO_ERROR = 0x0
    PROTOCOL_ERROR = 0x1
    INTERNAL_ERROR = 0x2
    FLOW_CONTROL_ERROR = 0x3
    SETTINGS_TIMEOUT = 0x4
    STREAM_CLOSED = 0x5
    FRAME_SIZE_ERROR = 0x6
    REFUSED_STREAM = 0x7
    CANCEL = 0x8
    COMPRESSION_ERROR = 0x9
    ENHANCE_YOUR_CALM = 0xB


class Setting(enum.IntEnum):
    """What a peer may be told of the other (section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Http2Error(Exception):
    """What ends a connection, or the one stream whose number it has.

    Args:
        code: What the peer is told.
        problem: What it is told in words, and the log.
        stream: The stream, or 0 for the connection.
    """

    def __init__(self, code: ErrorCode, problem: str, stream: int = 0):
        super().__init__(problem)
        self.code = code
        self.stream = stream


def parse_head(buffer: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Returns a frame's payload length, type, flags and stream."""
    high, low, kind, flags, stream = _HEAD.unpack_from(buffer, at)
    return high << 8 | low, kind, flags, stream & LAST_STREAM


def checked(length: int) -> int:
    """Returns a payload's length.

    Raises:
        Http2Error: It is more than what is taken.
    """
    if length > MAX_FRAME_BYTES:
        raise Http2Error(
            ErrorCode.FRAME_SIZE_ERROR, f"frame: {length} bytes, wanted at most {MAX_FRAME_BYTES}"
        )
    return length


def whole_body(data: bytes, payload: bytes, number: int, at: int) -> tuple[bytes, int, int]:
    """Puts together what is there of a body: clients send 16 KiB a frame.

    Args:
        data: What has come.
        payload: Of a first frame of DATA, without flags.
        number: Its stream.
        at: Where the next frame begins.

    Returns:
        The payload of that frame and of those of the same stream after it, the flags of the
        last, and where the next frame begins.
    """
    parts: list[bytes | memoryview] = [payload]
    view, end, flags = memoryview(data), len(data), 0
    while not flags and end - at >= HEAD_BYTES:
        length, kind, flags, stream = parse_head(data, at)
        stop = at + HEAD_BYTES + length
        if (
            stop > end
            or kind != DATA
            or stream != number
            or not 0 < length <= MAX_FRAME_BYTES
            or flags not in (0, END_STREAM)
        ):
            flags = 0
            break
        parts.append(view[at + HEAD_BYTES : stop])
        at = stop
    return (payload if len(parts) == 1 else b"".join(parts)), flags, at


def head(length: int, kind: int, flags: int, stream: int) -> bytes:
    """The nine bytes before a payload."""
    return _HEAD.pack(length >> 8, length & 0xFF, kind, flags, stream)


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """A whole frame."""
    return head(len(payload), kind, flags, stream) + payload


def settings(values: Mapping[Setting, int]) -> bytes:
    """A SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))


def parse_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Returns what a SETTINGS frame says, in its order, unknown numbers included."""
    return _SETTING.iter_unpack(payload)


def window_update(stream: int, increment: int) -> bytes:
    """A WINDOW_UPDATE frame; stream 0 for the connection."""
    return frame(WINDOW_UPDATE, 0, stream, _LONG.pack(increment))


def rst_stream(stream: int, code: ErrorCode) -> bytes:
    """A RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream, _LONG.pack(code))


def goaway(last_stream: int, code: ErrorCode, problem: str = "") -> bytes:
    """A GOAWAY frame."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last_stream, code) + problem.encode())


def parse_long(payload: bytes) -> int:
    """Returns the number that a payload of four bytes is."""
    return int(_LONG.unpack(payload)[0])


def without_padding(payload: bytes, flags: int) -> bytes:
    """Returns a payload of DATA or HEADERS without its padding.

    Raises:
        Http2Error: The padding is longer than the payload.
    """
    if not flags & PADDED:
        return payload
    if not payload:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "padded, and empty")
    if payload[0] >= len(payload):
        raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]
