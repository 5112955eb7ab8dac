"""gRPC's messages in the body of a request (PROTOCOL-HTTP2, "Length-Prefixed-Message")."""

import zlib
from collections import deque
from collections.abc import Callable
from typing import Final

from service.errors import InvalidArgument, TooLarge, Unimplemented

PREFIX_BYTES: Final = 5
#: Encodings that a request may have; replies are never compressed.
ENCODINGS: Final = "identity,deflate,gzip"
# What zlib is told of the header: zlib's own, or gzip's.
_WINDOW_BITS: Final = {"deflate": 15, "gzip": 31}


class Reader:
    """Puts the messages of one request together.

    Args:
        encoding: The request's `grpc-encoding`.
        max_bytes: Most bytes of a message, compressed or not.
        held: Told by how many bytes what is held here has grown; may raise.

    Attributes:
        messages: Those that are complete, oldest first.
    """

    __slots__ = ("_bytes", "_chunks", "_encoding", "_held", "_length", "_max_bytes", "messages")

    def __init__(self, encoding: str, max_bytes: int, held: Callable[[int], None]):
        self.messages: deque[bytes] = deque()
        self._encoding = encoding
        self._max_bytes = max_bytes
        self._held = held
        self._chunks: list[bytes] = []
        self._bytes = 0
        self._length = -1

    @property
    def partial(self) -> bool:
        """Whether a message has begun and is not complete."""
        return self._bytes > 0

    def feed(self, chunk: bytes) -> None:
        """Takes some of the body.

        Raises:
            TooLarge: A message is longer than is allowed, or too many bytes are held.
            Unimplemented: A message is compressed in a way that is not known.
            InvalidArgument: A message does not decompress.
        """
        if (
            not self._bytes
            and PREFIX_BYTES + int.from_bytes(chunk[1:PREFIX_BYTES], "big") == len(chunk)
            and len(chunk) <= self._max_bytes
            and not chunk[0]
        ):
            self.messages.append(chunk[PREFIX_BYTES:])  # whole, as small ones are
            return
        self._chunks.append(chunk)
        self._bytes += len(chunk)
        self._held(len(chunk))
        while self._bytes >= PREFIX_BYTES:
            if self._length < 0:
                prefix = self._front(PREFIX_BYTES)
                self._length = int.from_bytes(prefix[1:PREFIX_BYTES], "big")
                if self._length > self._max_bytes:
                    raise too_large(self._length, self._max_bytes)
            size = PREFIX_BYTES + self._length
            if self._bytes < size:
                return
            whole = self._front(size)
            rest = whole[size:]
            self._chunks, self._bytes, self._length = [rest] if rest else [], len(rest), -1
            self._held(-size)
            body = whole[PREFIX_BYTES:size]
            self.messages.append(self._decompressed(body) if whole[0] else body)

    def close(self) -> None:
        """Lets go of what is not complete."""
        self._held(-self._bytes)
        self._chunks, self._bytes = [], 0

    def _front(self, size: int) -> bytes:
        """The first chunk, made so long."""
        if len(self._chunks[0]) < size:
            self._chunks = [b"".join(self._chunks)]
        return self._chunks[0]

    def _decompressed(self, body: bytes) -> bytes:
        bits = _WINDOW_BITS.get(self._encoding)
        if bits is None:
            raise Unimplemented(f"grpc-encoding: got {self._encoding!r}, wanted one of {ENCODINGS}")
        try:
            stream = zlib.decompressobj(bits)
            message = stream.decompress(body, self._max_bytes + 1)
        except zlib.error as error:
            raise InvalidArgument("request", str(error), f"{self._encoding} data") from error
        if len(message) > self._max_bytes:
            raise too_large(len(message), self._max_bytes)
        if not stream.eof:
            raise InvalidArgument("request", "an incomplete stream", f"{self._encoding} data")
        return message


def prefix(length: int) -> bytes:
    """The five bytes before a message that is not compressed."""
    return b"\0" + length.to_bytes(4, "big")


def too_large(got: int, most: int) -> TooLarge:
    """The error of a message beyond a limit, in the words that gRPC's libraries have for it."""
    return TooLarge(f"message: larger than max ({got} vs. {most} bytes; see max_message_bytes)")
