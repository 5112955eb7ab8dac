"""Header blocks: HPACK (RFC 7541) in, checked, and literal fields out."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import hpack

from service.transport.http2.frames import ErrorCode, Http2Error

#: Most bytes that the fields of a request may have, by the count of RFC 9113 section 6.5.2.
MAX_HEADER_LIST_BYTES: Final = 16_384
#: Most bytes of a header block. Not all clients heed the list's limit: those a little beyond
#: it are refused one by one, and the connection lives.
MAX_BLOCK_BYTES: Final = 32_768
#: What a table of header fields may hold if nothing else was agreed on.
TABLE_BYTES: Final = 4096
_MOST_DECODED_BYTES: Final = 65_536
# Blocks kept decoded; a client has one for each method it calls, not many, and not long.
_MOST_CACHED = 64
_LONGEST_CACHED = 1024
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
        too_large: Whether there were more fields than are taken; they are not kept.
    """

    method: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    content_length: int | None = None
    too_large: bool = False


class HeaderDecoder:
    """Decodes the blocks of one connection, in their order.

    A client sends the same few blocks over and over. As long as none of them changes the
    table, they are looked up.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(_MOST_DECODED_BYTES)
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
        head = _head(fields, stream)
        if len(block) <= _LONGEST_CACHED:
            if len(self._known) >= _MOST_CACHED:
                self._known.clear()
            self._known[block] = head
        return head

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Decodes any block: the table has to follow, whoever wants to see it.

        Raises:
            Http2Error: It does not decode.
        """
        self._known.clear()
        return self._decode(block)

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
                f"header list: more than {_MOST_DECODED_BYTES} bytes",
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


def without_table() -> bytes:
    """What tells a peer, at the beginning of a header block, that no table is used."""
    return b"\x20"


def check_trailers(fields: list[tuple[bytes, bytes]], stream: int) -> None:
    """Checks the fields after the body of a request; nothing else is done with them.

    Raises:
        Http2Error: They are malformed.
    """
    for name, value in fields:
        problem = _problem(name, value)
        if problem:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, f"trailers: {problem}", stream)


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
        text = value.decode("latin-1")
        if name in _PSEUDO:
            if regular or name in pseudo:
                raise malformed("a pseudo-header field repeated or out of place")
            if problem := _problem(b"x", value):
                raise malformed(problem)
            pseudo[name] = text
            continue
        if problem := _problem(name, value):
            raise malformed(problem)
        if name == b"content-length":
            if not value.isdigit() or len(value) > 18 or length not in (None, int(value)):
                raise malformed("content-length: wanted one number")
            length = int(value)
        key = name.decode("ascii")
        regular[key] = f"{regular[key]},{text}" if key in regular else text
    if not pseudo.get(b":path") or b":method" not in pseudo or b":scheme" not in pseudo:
        raise malformed("no :method, :scheme or :path")
    size = sum(len(name) + len(value) for name, value in fields) + 32 * len(fields)
    if size > MAX_HEADER_LIST_BYTES:
        kept = {key: regular[key] for key in ("content-type",) if key in regular}
        return Head(pseudo[b":method"], pseudo[b":path"], kept, length, too_large=True)
    return Head(pseudo[b":method"], pseudo[b":path"], MappingProxyType(regular), length)


def _problem(name: bytes, value: bytes) -> str:
    """What is wrong with a field that is no pseudo-header field; empty for nothing."""
    if not name or not _NAME.issuperset(name):
        return "a field name that is no lower-case token"
    if b"\0" in value or b"\r" in value or b"\n" in value or value != value.strip(b" \t"):
        return "a field value with a control character or space around it"
    if name in _FORBIDDEN or (name == b"te" and value != b"trailers"):
        return f"a field that HTTP/2 has no use for: {name.decode()}"
    return ""
