"""Length-prefixed messages of a gRPC request's body (PROTOCOL-HTTP2, "Length-Prefixed-Message")."""

import struct
import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

from service.dispatch.status import too_large
from service.errors import InvalidArgument, ServiceError, Unimplemented, shortened

PREFIX_BYTES: Final = 5
# Whether the message is compressed, and its length.
_PREFIX: Final = struct.Struct(">BL")
#: Values of `grpc-encoding` that a request may have; replies are never compressed.
ENCODINGS: Final = "identity,deflate,gzip"
# Held bytes are first reported at this number (fewer are negligible even on every stream of a
# connection), and then again after each step.
_MIN_REPORTED_BYTES: Final = 16_384
_REPORT_STEP_BYTES: Final = 65_536
# Longest message of `whole_message`: of more, `MessageBuffer` reports the bytes.
_MAX_WHOLE_BYTES: Final = _MIN_REPORTED_BYTES - PREFIX_BYTES
# Pieces shorter than _SMALL_PIECE_BYTES are joined until they exceed _MAX_JOINED_BYTES.
_SMALL_PIECE_BYTES: Final = 4096
_MAX_JOINED_BYTES: Final = 65_536
# Highest compression ratio of deflate.
_MAX_DEFLATE_RATIO: Final = 1032
# zlib's `wbits` parameter, which selects the stream format.
_WBITS: Final = {"deflate": 15, "gzip": 31}


class MessageBuffer:
    """Assembles the messages of one request from received bytes.

    Bytes are kept as received until a message is taken: many separate small messages, or a
    decompressed one, would take far more memory.

    Args:
        encoding: Value of the request's `grpc-encoding`.
        max_bytes: Maximum size of a message in bytes, both compressed and decompressed.
        hold: Called with the change in held bytes, and with those held now; raises Overloaded if
            the server holds too many.
    """

    __slots__ = (
        "_encoding",
        "_hold",
        "_length",
        "_max_bytes",
        "_pieces",
        "_reported",
        "_size",
        "_start",
    )

    def __init__(self, encoding: str, max_bytes: int, hold: Callable[[int, int], None]):
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._hold = hold
        self._pieces: deque[bytes | bytearray] = deque()
        # Offset of the oldest message in the first piece.
        self._start = 0
        # Total length of the pieces from there on.
        self._length = 0
        # Length of the oldest message with its prefix, or 0 while its prefix is incomplete.
        self._size = 0
        # Value of `_length` last reported to `hold`.
        self._reported = 0

    @property
    def held_bytes(self) -> int:
        """Number of bytes received but not taken yet."""
        return self._length

    @property
    def reported_bytes(self) -> int:
        """Number of held bytes last reported to `hold`; 0 while they are few."""
        return self._reported

    @property
    def ready(self) -> bool:
        """Whether a message is complete.

        Raises:
            TooLarge: The message exceeds the limit.
            ServiceError: The prefix is invalid.
        """
        if not self._size:
            if self._length < PREFIX_BYTES:
                return False
            self._size = self._parse_prefix()
        return self._length >= self._size

    @property
    def compressed(self) -> bool:
        """Whether the oldest message, which has to be `ready`, is compressed."""
        return self._pieces[0][self._start] == 1

    @property
    def more_than_one(self) -> bool:
        """Whether bytes follow the oldest message, which has to be `ready`."""
        return self._length > self._size

    def feed(self, piece: bytes) -> bool:
        """Adds a piece of the body; returns whether a message is complete.

        Raises:
            TooLarge: The message exceeds the limit.
            Overloaded: The server holds too many bytes.
            ServiceError: The prefix is invalid.
        """
        length, pieces = len(piece), self._pieces
        if length >= _SMALL_PIECE_BYTES or not pieces:
            pieces.append(piece)
        else:
            # Thousands of tiny `bytes` objects would take much more memory than their contents.
            last = pieces[-1]
            if len(last) > _MAX_JOINED_BYTES:
                pieces.append(bytearray(piece))
            elif isinstance(last, bytearray):
                last += piece
            else:
                pieces[-1] = bytearray(last) + piece
        self._length = length = self._length + length
        if length > self._reported + (
            _REPORT_STEP_BYTES if self._reported else _MIN_REPORTED_BYTES
        ):
            self._report()
        if not self._size:
            if length < PREFIX_BYTES:
                return False
            self._size = self._parse_prefix()
        return length >= self._size

    def take(self) -> bytes:
        """Returns the oldest message, decompressed; it has to be `ready`.

        Raises:
            TooLarge: The decompressed message exceeds the limit.
            Unimplemented: The message's encoding is not supported.
            InvalidArgument: The message cannot be decompressed.
            ServiceError: The message is compressed, but the request has no `grpc-encoding`.
        """
        pieces, start, stop = self._pieces, self._start, self._start + self._size
        self._length -= self._size
        self._size = 0
        first = pieces[0]
        compressed = first[start]
        if stop < len(first):
            body = bytes(first[start + PREFIX_BYTES : stop])
            self._start = stop
        else:
            parts: list[bytes | bytearray | memoryview] = [
                memoryview(first)[start + PREFIX_BYTES :]
            ]
            while stop >= len(pieces[0]):
                stop -= len(pieces.popleft())
                if not stop:
                    break
                parts.append(pieces[0] if stop >= len(pieces[0]) else memoryview(pieces[0])[:stop])
            self._start = stop
            body = b"".join(parts)
        if self._reported:
            self._report()
        return self._decompressed(body) if compressed else body

    def close(self) -> None:
        """Drops all held bytes."""
        self._pieces.clear()
        self._start = self._size = self._length = 0
        if self._reported:
            self._report()

    def _parse_prefix(self) -> int:
        """Returns the length of the oldest message, including its prefix."""
        pieces, start = self._pieces, self._start
        while len(pieces[0]) < start + PREFIX_BYTES:
            begun = bytes(pieces.popleft()[start:])
            pieces[0] = begun + pieces[0]
            self._start = start = 0
        first = pieces[0]
        if first[start] > 1:
            raise ServiceError(f"message: got compressed flag {first[start]}, wanted 0 or 1")
        length = int.from_bytes(first[start + 1 : start + PREFIX_BYTES], "big")
        if length > self._max_bytes:
            raise too_large(length, self._max_bytes)
        return PREFIX_BYTES + length

    def _report(self) -> None:
        before, self._reported = self._reported, self._length
        self._hold(self._reported - before, self._reported)

    def _decompressed(self, body: bytes) -> bytes:
        if self._encoding == "identity":
            raise ServiceError("message: compressed, but there is no grpc-encoding")
        wbits = _WBITS.get(self._encoding)
        if wbits is None:
            got = shortened(repr(self._encoding))
            raise Unimplemented(f"grpc-encoding: got {got}, wanted one of {ENCODINGS}")
        if self._encoding == "gzip":
            # A gzip stream ends with its decompressed length: too long a message need not be
            # decompressed.
            length = int.from_bytes(body[-4:], "little")
            if self._max_bytes < length <= _MAX_DEFLATE_RATIO * len(body):
                raise too_large(length, self._max_bytes)
        try:
            inflater = zlib.decompressobj(wbits)
            message = inflater.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise InvalidArgument("request", str(error), f"{self._encoding} data") from error
        if len(message) > self._max_bytes:
            raise too_large(len(message), self._max_bytes)
        if not inflater.eof or inflater.unused_data:
            got = "more than one stream" if inflater.eof else "an incomplete stream"
            raise InvalidArgument("request", got, f"{self._encoding} data")
        return message


def whole_message(body: bytes, max_bytes: int) -> bytes | None:
    """Returns the message of a request that is short and complete; None if `MessageBuffer` is due.

    Args:
        body: All of the request's body.
        max_bytes: Maximum size of a message in bytes.
    """
    size = len(body) - PREFIX_BYTES
    if not 0 <= size <= _MAX_WHOLE_BYTES or size > max_bytes:
        return None
    return body[PREFIX_BYTES:] if _PREFIX.unpack_from(body) == (0, size) else None


def prefix(length: int) -> bytes:
    """Returns the prefix of an uncompressed message of `length` bytes."""
    return _PREFIX.pack(0, length)
