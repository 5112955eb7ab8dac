"""gRPC's messages in the body of a request (PROTOCOL-HTTP2, "Length-Prefixed-Message")."""

import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

from service.errors import InvalidArgument, ServiceError, TooLarge, Unimplemented, shortened

PREFIX_BYTES: Final = 5
#: Encodings that a request may have; replies are never compressed.
ENCODINGS: Final = "identity,deflate,gzip"
# What is not worth counting: as many as a connection has streams are still little.
_SMALL_BYTES: Final = 16_384
# With each so many more it is counted again.
_STEP_BYTES: Final = 65_536
# Pieces of a body below this size are put together, up to that size.
_MERGED_BYTES: Final = 4096
_LARGE_BYTES: Final = 65_536
# How much smaller deflate makes what it likes best.
_MOST_DEFLATED: Final = 1032
# What zlib is told of the header: zlib's own, or gzip's.
_WINDOW_BITS: Final = {"deflate": 15, "gzip": 31}


class MessageReader:
    """Puts the messages of one request together.

    They stay as the bytes that came until they are taken: many small messages, or a large
    one that is compressed, would be far larger as what they become.

    Args:
        encoding: The request's `grpc-encoding`.
        max_bytes: Most bytes of a message, compressed or not.
        held: Told by how many bytes what is held here has grown; may raise.
    """

    __slots__ = ("_at", "_chunks", "_counted", "_encoding", "_have", "_held", "_max_bytes", "_size")

    def __init__(self, encoding: str, max_bytes: int, held: Callable[[int], None]):
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._held = held
        self._chunks: deque[bytes | bytearray] = deque()
        # Where in the first chunk the oldest message begins, its length with its prefix, and
        # that of all that was not taken.
        self._at = 0
        self._size = 0
        self._have = 0
        self._counted = 0

    @property
    def held_bytes(self) -> int:
        """Length of what has come and was not taken."""
        return self._have

    @property
    def ready(self) -> bool:
        """Whether a message is complete.

        Raises:
            TooLarge: It is longer than is allowed.
            ServiceError: It is not a message.
        """
        if not self._size:
            if self._have < PREFIX_BYTES:
                return False
            self._size = self._look()
        return self._have >= self._size

    @property
    def more_than_one(self) -> bool:
        """Whether something has come after a message that is `ready`."""
        return self._have > self._size

    def feed(self, chunk: bytes) -> bool:
        """Takes some of the body; returns whether a message is complete.

        Raises:
            TooLarge: A message is longer than is allowed, or too many bytes are held.
            ServiceError: It is not a message.
        """
        length, chunks = len(chunk), self._chunks
        if length >= _MERGED_BYTES or not chunks:
            chunks.append(chunk)
        else:
            # Thousands of tiny ones would be much larger than what is in them.
            last = chunks[-1]
            if len(last) > _LARGE_BYTES:
                chunks.append(bytearray(chunk))
            elif isinstance(last, bytearray):
                last += chunk
            else:
                chunks[-1] = bytearray(last) + chunk
        self._have = have = self._have + length
        if have > self._counted + (_STEP_BYTES if self._counted else _SMALL_BYTES):
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
        chunks, start, stop = self._chunks, self._at, self._at + self._size
        self._have -= self._size
        self._size = 0
        first = chunks[0]
        compressed = first[start]
        if stop < len(first):
            body = bytes(first[start + PREFIX_BYTES : stop])
            self._at = stop
        else:
            parts: list[bytes | bytearray | memoryview] = [
                memoryview(first)[start + PREFIX_BYTES :]
            ]
            while stop >= len(chunks[0]):
                stop -= len(chunks.popleft())
                if not stop:
                    break
                parts.append(chunks[0] if stop >= len(chunks[0]) else memoryview(chunks[0])[:stop])
            self._at = stop
            body = b"".join(parts)
        if self._counted:
            self._count()
        return self._decompressed(body) if compressed else body

    def close(self) -> None:
        """Lets go of everything."""
        self._chunks.clear()
        self._at = self._size = self._have = 0
        if self._counted:
            self._count()

    def _look(self) -> int:
        chunks, at = self._chunks, self._at
        while len(chunks[0]) < at + PREFIX_BYTES:
            begun = bytes(chunks.popleft()[at:])
            chunks[0] = begun + chunks[0]
            self._at = at = 0
        first = chunks[0]
        if first[at] > 1:
            raise ServiceError(f"message: it begins with {first[at]}, wanted 0 or 1")
        length = int.from_bytes(first[at + 1 : at + PREFIX_BYTES], "big")
        if length > self._max_bytes:
            raise too_large(length, self._max_bytes)
        return PREFIX_BYTES + length

    def _count(self) -> None:
        before, self._counted = self._counted, self._have
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
