"""Header blocks (HPACK, RFC 7541): requests decoded and checked, responses encoded as literals."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

import hpack

from service.transport.http2.frames import ErrorCode, Http2Error, protocol_error

#: Our SETTINGS_MAX_HEADER_LIST_SIZE, counted as in RFC 9113 section 6.5.2.
MAX_HEADER_LIST_BYTES: Final = 16_384
#: Maximum size of a header block in bytes; a larger one is a connection error. It is above
#: MAX_HEADER_LIST_BYTES, which some clients ignore: their requests are refused one by one.
MAX_BLOCK_BYTES: Final = 32_768
#: Initial value of SETTINGS_HEADER_TABLE_SIZE.
DEFAULT_TABLE_BYTES: Final = 4096
_MAX_DECODED_BYTES: Final = 65_536
# Maximum number of frames in a header block; a CONTINUATION flood sends many small ones.
_MAX_FRAGMENTS: Final = 32
# Size of the cache of decoded header blocks: a client uses one short block per method.
_MAX_CACHED = 64
_MAX_CACHED_BYTES = 1024
# First byte of a dynamic table size update (RFC 7541 section 6.3).
_SIZE_UPDATES: Final = frozenset(bytes((byte,)) for byte in range(0x20, 0x40))
_CONNECTION_SPECIFIC: Final = frozenset(
    (b"connection", b"keep-alive", b"proxy-connection", b"transfer-encoding", b"upgrade")
)
_PSEUDO: Final = frozenset((b":method", b":scheme", b":path", b":authority"))
_NAME: Final = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz")


@dataclass(frozen=True, slots=True)
class RequestHead:
    """Header section of a request.

    Attributes:
        method: Value of `:method`, as in `POST`.
        path: Value of `:path`, as in `/package.Service/Method`.
        fields: Regular fields by lower-case name; the values of a repeated field are joined by
            commas (RFC 9110 section 5.3).
        content_length: Announced length of the body in bytes, or None.
        too_large: Whether the fields exceed MAX_HEADER_LIST_BYTES; then all but `content-type`
            are dropped.
    """

    method: str
    path: str
    fields: Mapping[str, str] = field(default_factory=dict)
    content_length: int | None = None
    too_large: bool = False


class PartialBlock:
    """A header block whose END_HEADERS flag has not been received yet.

    Args:
        stream_id: Stream of its HEADERS frame.
        end_stream: Whether that frame has END_STREAM.
        fragment: Payload of that frame, without padding and priority.
    """

    __slots__ = ("_fragments", "end_stream", "stream_id")

    def __init__(self, stream_id: int, fragment: bytes, *, end_stream: bool):
        self.stream_id = stream_id
        self.end_stream = end_stream
        self._fragments = [fragment]

    def add(self, fragment: bytes) -> None:
        """Adds the payload of a CONTINUATION frame.

        Raises:
            Http2Error: The block is too long, or in too many fragments.
        """
        self._fragments.append(fragment)
        size = sum(map(len, self._fragments))
        if size > MAX_BLOCK_BYTES or len(self._fragments) > _MAX_FRAGMENTS:
            raise block_too_long()

    def join(self) -> bytes:
        """Returns the fragments received so far as one block."""
        return b"".join(self._fragments)


class HeaderDecoder:
    """Decodes the header blocks of one connection, in the order received.

    Clients send the same few blocks over and over, so decoded blocks are cached until a block
    changes the dynamic table.
    """

    def __init__(self) -> None:
        self._decoder = hpack.Decoder(_MAX_DECODED_BYTES)
        self._table = self._decoder.header_table.dynamic_entries
        self._cache: dict[bytes, RequestHead] = {}

    def request(self, block: bytes, stream_id: int) -> RequestHead:
        """Decodes the header block that opens a stream.

        Raises:
            Http2Error: A connection error if the block cannot be decoded, which leaves the dynamic
                table out of sync; a stream error if the request is malformed.
        """
        cached = self._cache.get(block)
        if cached is not None:
            return cached
        newest = self._newest()
        fields = self._decode(block)
        if self._newest() is not newest or block[:1] in _SIZE_UPDATES:
            self._cache.clear()  # dynamic indexes have shifted
            return _request_head(fields, stream_id)
        head = _request_head(fields, stream_id)
        if len(block) <= _MAX_CACHED_BYTES:
            if len(self._cache) >= _MAX_CACHED:
                self._cache.clear()
            self._cache[block] = head
        return head

    def decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        """Decodes a header block that does not open a stream.

        Every received block has to be decoded, to keep the dynamic table in sync.

        Raises:
            Http2Error: A connection error: the block cannot be decoded.
        """
        self._cache.clear()
        return self._decode(block)

    def _newest(self) -> tuple[bytes, bytes] | None:
        """Returns the newest entry of the dynamic table: until it changes, indices stay valid."""
        return self._table[0] if self._table else None

    def _decode(self, block: bytes) -> list[tuple[bytes, bytes]]:
        try:
            return [
                (bytes(name), bytes(value)) for name, value in self._decoder.decode(block, True)
            ]
        except hpack.OversizedHeaderListError as error:
            raise Http2Error(
                ErrorCode.ENHANCE_YOUR_CALM,
                f"header list: more than {_MAX_DECODED_BYTES} bytes",
            ) from error
        except hpack.HPACKError as error:
            raise Http2Error(ErrorCode.COMPRESSION_ERROR, f"header block: {error}") from error


def encode(fields: Iterable[tuple[str, str]]) -> bytes:
    """Encodes fields as literals without indexing (RFC 7541 section 6.2.2).

    Without a dynamic table there is no state to keep in sync, and constant blocks can be encoded
    once and reused.

    Args:
        fields: Lower-case names and values, all ASCII.
    """
    return b"".join(
        b"\x00" + _literal(name.encode("ascii")) + _literal(value.encode("ascii"))
        for name, value in fields
    )


def status_200() -> bytes:
    """Returns the encoded field `:status: 200`, which is in the static table."""
    return b"\x88"


def no_table() -> bytes:
    """Returns an encoded dynamic table size update to 0 (RFC 7541 section 6.3)."""
    return b"\x20"


def check_trailers(fields: list[tuple[bytes, bytes]], stream_id: int) -> None:
    """Checks the trailers of a request; they are not used otherwise.

    Raises:
        Http2Error: A field is malformed.
    """
    for name, value in fields:
        problem = _problem(name, value)
        if problem:
            raise protocol_error(f"trailers: {problem}", stream_id)


def block_too_long() -> Http2Error:
    """Returns the connection error for a header block that exceeds a limit."""
    problem = f"header block: more than {MAX_BLOCK_BYTES} bytes, or in too many pieces"
    return Http2Error(ErrorCode.ENHANCE_YOUR_CALM, problem)


def _literal(text: bytes) -> bytes:
    """Encodes a string literal (RFC 7541 section 5.2), without Huffman coding to save time."""
    length = len(text)
    if length < 127:
        return bytes((length,)) + text
    prefix = bytearray((127,))
    length -= 127
    while length >= 128:
        prefix.append(length & 127 | 128)
        length >>= 7
    prefix.append(length)
    return bytes(prefix) + text


def _request_head(fields: list[tuple[bytes, bytes]], stream_id: int) -> RequestHead:
    """Makes the head of a request from its fields (RFC 9113, sections 8.2 and 8.3).

    Raises:
        Http2Error: The request is malformed.
    """

    def malformed(problem: str) -> Http2Error:
        return protocol_error(problem, stream_id)

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
        return RequestHead(pseudo[b":method"], pseudo[b":path"], kept, length, too_large=True)
    return RequestHead(pseudo[b":method"], pseudo[b":path"], MappingProxyType(regular), length)


def _problem(name: bytes, value: bytes) -> str:
    """Describes what is malformed in a regular field; empty if nothing is."""
    if not name or not _NAME.issuperset(name):
        return "a field name that is not a lower-case token"
    if b"\0" in value or b"\r" in value or b"\n" in value or value != value.strip(b" \t"):
        return "a field value with a control character or surrounding space"
    if name in _CONNECTION_SPECIFIC or (name == b"te" and value != b"trailers"):
        return f"a field that HTTP/2 prohibits: {name.decode()}"
    return ""
