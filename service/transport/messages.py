"""gRPC's messages in the body of a request (PROTOCOL-HTTP2, "Length-Prefixed-Message")."""

import zlib
from collections.abc import Callable
from typing import Final

from service.errors import InvalidArgument, ServiceError, TooLarge, Unimplemented, shortened

PREFIX_BYTES: Final = 5
#: Encodings that a request may have; replies are never compressed.
ENCODINGS: Final = "identity,deflate,gzip"
# What is not worth counting: as many as a connection has streams are still little.
_SMALL_BYTES: Final = 16_384
# How much smaller deflate makes what it likes best.
_MOST_DEFLATED: Final = 1032
# What zlib is told of the header: zlib's own, or gzip's.
_WINDOW_BITS: Final = {"deflate": 15, "gzip": 31}


class Reader:
    """Puts the messages of one request together.

    They stay as the bytes that came until they are taken: many small messages, or a large
    one that is compressed, would be far larger as what they become.

    Args:
        encoding: The request's `grpc-encoding`.
        max_bytes: Most bytes of a message, compressed or not.
        held: Told by how many bytes what is held here has grown; may raise.
    """

    __slots__ = ("_at", "_buffer", "_counted", "_encoding", "_held", "_max_bytes", "_size")

    def __init__(self, encoding: str, max_bytes: int, held: Callable[[int], None]):
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._held = held
        self._buffer: bytes | bytearray = b""
        # Where in the buffer the oldest message begins, and its length with its prefix.
        self._at = 0
        self._size = 0
        self._counted = 0

    @property
    def held_bytes(self) -> int:
        """Length of what has come and was not taken."""
        return len(self._buffer) - self._at

    @property
    def ready(self) -> bool:
        """Whether a message is complete.

        Raises:
            TooLarge: It is longer than is allowed.
            ServiceError: It is not a message.
        """
        have = len(self._buffer) - self._at
        if not self._size:
            if have < PREFIX_BYTES:
                return False
            self._size = self._look()
        return have >= self._size

    @property
    def more_than_one(self) -> bool:
        """Whether something has come after a message that is `ready`."""
        return len(self._buffer) - self._at > self._size

    def feed(self, chunk: bytes) -> bool:
        """Takes some of the body; returns whether a message is complete.

        Raises:
            TooLarge: A message is longer than is allowed, or too many bytes are held.
            ServiceError: It is not a message.
        """
        if not self._buffer:
            self._buffer = chunk
        else:
            if not isinstance(self._buffer, bytearray):
                self._buffer = bytearray(memoryview(self._buffer)[self._at :])
                self._at = 0
            self._buffer += chunk
        have = len(self._buffer) - self._at
        if self._counted or have > _SMALL_BYTES:
            self._count()
        if not self._size:
            if have < PREFIX_BYTES:
                return False
            self._size = self._look()
        return have >= self._size

    def take(self) -> bytes:
        """Returns the oldest message; it has to be `ready`.

        Raises:
            TooLarge: It is longer than is allowed once it is decompressed.
            Unimplemented: It is compressed in a way that is not known.
            InvalidArgument: It does not decompress.
            ServiceError: It is compressed, and the request did not say so.
        """
        buffer, start, stop = self._buffer, self._at, self._at + self._size
        compressed = buffer[start]
        if isinstance(buffer, bytearray):
            with memoryview(buffer) as view:
                body = bytes(view[start + PREFIX_BYTES : stop])
            del buffer[:stop]
        else:
            body = buffer[start + PREFIX_BYTES : stop]
            self._at = stop
        self._size = 0
        if self._at >= len(self._buffer):
            self._buffer, self._at = b"", 0
        if self._counted:
            self._count()
        return self._decompressed(body) if compressed else body

    def close(self) -> None:
        """Lets go of everything."""
        self._buffer, self._at, self._size = b"", 0, 0
        if self._counted:
            self._count()

    def _look(self) -> int:
        at, buffer = self._at, self._buffer
        if buffer[at] > 1:
            raise ServiceError(f"message: it begins with {buffer[at]}, wanted 0 or 1")
        length = int.from_bytes(buffer[at + 1 : at + PREFIX_BYTES], "big")
        if length > self._max_bytes:
            raise too_large(length, self._max_bytes)
        return PREFIX_BYTES + length

    def _count(self) -> None:
        before, self._counted = self._counted, self.held_bytes
        self._held(self._counted - before)

    def _decompressed(self, body: bytes) -> bytes:
        if self._encoding == "identity":
            raise ServiceError("message: compressed, but there is no grpc-encoding")
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            got = shortened(repr(self._encoding))
            raise Unimplemented(f"grpc-encoding: got {got}, wanted one of {ENCODINGS}")
        if self._encoding == "gzip":
            # It ends with the length of what is in it: a bomb that is honest costs nothing.
            length = int.from_bytes(body[-4:], "little")
            if self._max_bytes < length <= _MOST_DEFLATED * len(body):
                raise too_large(length, self._max_bytes)
        try:
            stream = zlib.decompressobj(bits)
            message = stream.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise InvalidArgument("request", str(error), f"{self._encoding} data") from error
        if len(message) > self._max_bytes:
            raise too_large(len(message), self._max_bytes)
        if not stream.eof or stream.unused_data:
            got = "more than one stream" if stream.eof else "an incomplete stream"
            raise InvalidArgument("request", got, f"{self._encoding} data")
        return message


def prefix(length: int) -> bytes:
    """The five bytes before a message that is not compressed."""
    return b"\0" + length.to_bytes(4, "big")


def too_large(got: int, most: int) -> TooLarge:
    """The error of a message beyond a limit, in the words that gRPC's libraries have for it."""
    return TooLarge(f"message: larger than max ({got} vs. {most} bytes; see max_message_bytes)")
