"""Header blocks: HPACK (RFC 7541) in, checked, and literal fields out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import hpack

from service.transport.http2.frames import ErrorCode, Http2Error

#: Most bytes that the fields of a request may have, by the count of RFC 9113 section 6.5.2.
MAX_HEADER_LIST_BYTES: Final = 16_384
# Blocks kept decoded; a client has one for each method it calls, not many.
_MOST_CACHED = 64
# How a block begins that changes the size of the table (RFC 7541 section 6.3).
_RESIZES: Final = frozenset(bytes((byte,)) for byte in range(0x20, 0x40))
_FORBIDDEN: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_NAME: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class Head:
    """What a request begins with.

    Attributes:
        method: As in `POST`.
        path: As in `/package.Service/Method`.
        fields: The other fields by their lower-case names; those sent several times are
            joined by commas (RFC 9110 section 5.3).
        content_length: Bytes announced, or None.
    """

    method: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    content_length: int | None = None


class HeaderDecoder:
    """Decodes the blocks of one connection, in their order.

    A client sends the same few blocks over and over. As long as none of them changes the
    table, they are looked up.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(MAX_HEADER_LIST_BYTES)
        self._table = self._decoder.header_table.dynamic_entries
        self._known: dict[bytes, Head] = {}

    def request(self, block: bytes, stream: int) -> Head:
        """Decodes the block that begins a request.

        Raises:
            Http2Error: It does not decode, which ends the connection, since the table is no
                longer known; or it is malformed, which ends the stream.
        """
        known = self._known.get(block)
        if known is not None:
            return known
        newest = self._newest()
        fields = self._decode(block)
        if self._newest() is not newest or block[:1] in _RESIZES:
            self._known.clear()  # indexes mean something else now
            return _head(fields, stream)
        if len(self._known) >= _MOST_CACHED:
            self._known.clear()
        head = self._known[block] = _head(fields, stream)
        return head

    def skip(self, block: bytes) -> None:
        """Decodes what nobody wants to see: the table has to follow all the same.

        Raises:
            Http2Error: It does not decode.
        """
        self._known.clear()
        self._decode(block)

    def _newest(self) -> tuple[bytes, bytes] | None:
        """The entry that came last; all others keep their indexes as long as it is that."""
        return self._table[0] if self._table else None

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(block, True)
            ]
        except hpack.OversizedHeaderListError as error:
            raise Http2Error(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"header list: more than {MAX_HEADER_LIST_BYTES} bytes",
            ) from error
        except hpack.HPACKError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from error


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encodes fields as literals that are not indexed (RFC 7541 section 6.2.2).

    Without a dynamic table there is no state that could get out of step, and what does not
    change can be encoded once.

    Args:
        fields: Names in lower case and values, both of ASCII.
    """
    return b"".join(
        b"\x00" + _literal(name.encode("ascii")) + _literal(value.encode("ascii"))
        for name, value in fields
    )


def status_200() -> bytes:
    """The field `:status: 200`, which is in the static table."""
    return b"\x88"


def _literal(text: bytes) -> bytes:
    # Strings without Huffman coding: it saves bytes that do not matter and costs time.
    length = len(text)
    if length < 127:
        return bytes((length,)) + text
    head = bytearray((127,))
    length -= 127
    while length >= 128:
        head.append(length & 127 | 128)
        length >>= 7
    head.append(length)
    return bytes(head) + text


def _head(fields: list[tuple[bytes, bytes]], stream: int) -> Head:
    """Checks the fields of a request (RFC 9113, sections 8.2 and 8.3).

    Raises:
        Http2Error: The request is malformed.
    """

    def malformed(problem: str) -> Http2Error:
        return Http2Error(ErrorCode.PROTOCOL_ERROR, problem, stream)

    pseudo: dict[bytes, str] = {}
    regular: dict[str, str] = {}
    length = None
    for name, value in fields:
        if any(byte in value for byte in b"\0\r\n") or value != value.strip(b" \t"):
            raise malformed("a field value with a control character or space around it")
        text = value.decode("latin-1")
        if name.startswith(b":"):
            if regular or name not in _PSEUDO or name in pseudo:
                raise malformed("a pseudo-header field unknown, repeated or out of place")
            pseudo[name] = text
            continue
        if not name or not _NAME.issuperset(name):
            raise malformed("a field name that is no lower-case token")
        if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
            raise malformed(f"a field that HTTP/2 has no use for: {name.decode()}")
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or length not in (None, int(value)):
                raise malformed("content-length: wanted one number")
            length = int(value)
        key = name.decode("ascii")
        regular[key] = f"{regular[key]},{text}" if key in regular else text
    if not pseudo.get(b":path") or b":method" not in pseudo or b":scheme" not in pseudo:
        raise malformed("no :method, :scheme or :path")
    return Head(pseudo[b":method"], pseudo[b":path"], MappingProxyType(regular), length)
