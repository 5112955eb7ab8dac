"""Encoding and parsing of HTTP/2 frames (RFC 9113, sections 4 and 6)."""

import enum
import struct
from collections.abc import Iterator, Mapping
from typing import Final

PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEADER_BYTES: Final = 9
#: Initial values of SETTINGS_MAX_FRAME_SIZE and of every flow-control window.
DEFAULT_FRAME_BYTES: Final = 16_384
DEFAULT_WINDOW: Final = 65_535
#: Our SETTINGS_MAX_FRAME_SIZE.
MAX_FRAME_BYTES: Final = 256 * 1024
MAX_WINDOW: Final = 2**31 - 1
MAX_STREAM_ID: Final = 2**31 - 1

# Frame types, then flags. Plain integers, since they are compared for every frame and each use of
# an enum member costs a lookup.
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
PRIORITY_FLAG: Final = 0x20

_SETTING: Final = struct.Struct(">HL")
_UINT32: Final = struct.Struct(">L")
#: A frame header: payload length (as 16 + 8 bits), type, flags, stream identifier.
HEADER: Final = struct.Struct(">HBBBL")


class ErrorCode(enum.IntEnum):
    """Error code of RST_STREAM or GOAWAY (section 7)."""

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
    """Identifier of a setting (section 6.5.2)."""

    HEADER_TABLE_SIZE = 0x1
    ENABLE_PUSH = 0x2
    MAX_CONCURRENT_STREAMS = 0x3
    INITIAL_WINDOW_SIZE = 0x4
    MAX_FRAME_SIZE = 0x5
    MAX_HEADER_LIST_SIZE = 0x6


class Http2Error(Exception):
    """A stream error or a connection error (section 5.4).

    Args:
        code: Error code for the peer.
        problem: Explanation, for the log and for the debug data of GOAWAY.
        stream_id: Stream that the error is limited to; 0 for a connection error.
    """

    def __init__(self, code: ErrorCode, problem: str, stream_id: int = 0):
        super().__init__(problem)
        self.code = code
        self.stream_id = stream_id


def protocol_error(problem: str, stream_id: int = 0) -> Http2Error:
    """Returns an error with the code PROTOCOL_ERROR."""
    return Http2Error(ErrorCode.PROTOCOL_ERROR, problem, stream_id)


def parse_header(buffer: bytes | bytearray, at: int) -> tuple[int, int, int, int]:
    """Parses a frame header; returns payload length, type, flags and stream identifier."""
    high, low, frame_type, flags, stream_id = HEADER.unpack_from(buffer, at)
    return high << 8 | low, frame_type, flags, stream_id & MAX_STREAM_ID


def header(length: int, frame_type: int, flags: int, stream_id: int) -> bytes:
    """Encodes the frame header for a payload of `length` bytes."""
    return HEADER.pack(length >> 8, length & 0xFF, frame_type, flags, stream_id)


def frame(frame_type: int, flags: int, stream_id: int, payload: bytes = b"") -> bytes:
    """Encodes a frame: header and payload."""
    return header(len(payload), frame_type, flags, stream_id) + payload


def settings(values: Mapping[Setting, int]) -> bytes:
    """Encodes a SETTINGS frame."""
    return frame(SETTINGS, 0, 0, b"".join(_SETTING.pack(*pair) for pair in values.items()))


def parse_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yields identifier and value of each setting in a payload, unknown ones included."""
    return _SETTING.iter_unpack(payload)


def window_update(stream_id: int, increment: int) -> bytes:
    """Encodes a WINDOW_UPDATE frame; stream 0 means the connection."""
    return frame(WINDOW_UPDATE, 0, stream_id, _UINT32.pack(increment))


def rst_stream(stream_id: int, code: ErrorCode) -> bytes:
    """Encodes a RST_STREAM frame."""
    return frame(RST_STREAM, 0, stream_id, _UINT32.pack(code))


def goaway(last_stream_id: int, code: ErrorCode, problem: str = "") -> bytes:
    """Encodes a GOAWAY frame; `problem` is its debug data."""
    return frame(GOAWAY, 0, 0, struct.pack(">LL", last_stream_id, code) + problem.encode())


def parse_uint32(payload: bytes) -> int:
    """Parses a payload of exactly four bytes as an unsigned integer."""
    return int(_UINT32.unpack(payload)[0])


def strip_padding(payload: bytes, flags: int) -> bytes:
    """Returns the payload of a DATA or HEADERS frame without its padding.

    Raises:
        Http2Error: The padding does not fit into the payload.
    """
    if not flags & PADDED:
        return payload
    if not payload:
        raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "padded but empty")
    if payload[0] >= len(payload):
        raise protocol_error("padding longer than the frame")
    return payload[1 : len(payload) - payload[0]]
