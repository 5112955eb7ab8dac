"""Header blocks, against the encoder and decoder of the hpack library."""

import hpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.transport.http2.frames import ErrorCode, Http2Error
from service.transport.http2.headers import (
    MAX_HEADER_LIST_BYTES,
    HeaderDecoder,
    check_trailers,
    encode,
    no_table,
    status_200,
)
from tests.support.http2_peer import literal, request_fields

FIRST = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")]


def decoded(*fields: tuple[str, str], first: list[tuple[str, str]] = FIRST):
    return HeaderDecoder().request(literal([*first, *fields]), 7)


# -------------------------------------------------------------------- requests


def test_a_request_decodes_to_its_fields():
    head = decoded(("te", "trailers"), ("content-length", "12"), ("x-a", "1"), ("x-a", "2"))
    assert (head.method, head.path, head.content_length) == ("POST", "/a/b", 12)
    assert dict(head.fields) == {"te": "trailers", "content-length": "12", "x-a": "1,2"}
    assert not head.too_large


@pytest.mark.parametrize("left_out", [":method", ":scheme", ":path"])
def test_a_request_without_a_mandatory_pseudo_field_is_malformed(left_out):
    with pytest.raises(Http2Error) as caught:
        decoded(first=[pair for pair in FIRST if pair[0] != left_out])
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 7)


@pytest.mark.parametrize(
    "field",
    [
        ("X-Upper", "1"), ("", "1"), ("a b", "1"), ("a:b", "1"), ("a\0", "1"), ("\x7f", "1"),
        ("a", "b\nc"), ("a", "b\rc"), ("a", "b\0"), ("a", " b"), ("a", "b\t"),
        ("connection", "close"), ("keep-alive", "1"), ("proxy-connection", "1"),
        ("transfer-encoding", "chunked"), ("upgrade", "h2c"), ("te", "gzip"),
        (":status", "200"), (":unknown", "1"), (":path", "/twice"),
        ("content-length", "-1"), ("content-length", "1x"), ("content-length", ""),
        ("content-length", "9" * 19),
    ],
)  # fmt: skip
def test_a_malformed_field_is_a_stream_error(field):
    with pytest.raises(Http2Error) as caught:
        decoded(field)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 7)


def test_pseudo_fields_out_of_place_or_malformed_are_a_stream_error():
    for fields in (
        [*FIRST[:2], ("x-a", "1"), FIRST[2]],
        [*FIRST[:2], (":path", "")],
        [*FIRST[:2], (":path", "/a\nb")],
        [*FIRST, (":authority", "a\rb")],
    ):
        with pytest.raises(Http2Error) as caught:
            decoded(first=fields)
        assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 7)


def test_repeated_content_lengths_have_to_agree():
    assert decoded(("content-length", "5"), ("content-length", "5")).content_length == 5
    with pytest.raises(Http2Error):
        decoded(("content-length", "5"), ("content-length", "6"))


def test_trailers_are_checked_like_other_fields():
    check_trailers([(b"x-a", b"1")], 3)
    for name, value in ((b":path", b"/"), (b"X", b"1"), (b"a", b"\n"), (b"connection", b"x")):
        with pytest.raises(Http2Error) as caught:
            check_trailers([(name, value)], 3)
        assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 3)


def test_fields_of_a_header_list_that_is_too_large_are_dropped():
    head = decoded(("content-type", "application/grpc"), ("x-a", "a" * MAX_HEADER_LIST_BYTES))
    assert head.too_large
    assert dict(head.fields) == {"content-type": "application/grpc"}
    assert not decoded(("x-a", "a" * (MAX_HEADER_LIST_BYTES - 500))).too_large


def test_a_block_that_decodes_to_too_much_is_a_connection_error():
    encoder = hpack.Encoder()
    decoder = HeaderDecoder()
    decoder.request(encoder.encode([*FIRST, ("x-bomb", "a" * 3900)]), 1)
    with pytest.raises(Http2Error) as caught:
        decoder.request(b"\xbe" * 10_000, 3)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.ENHANCE_YOUR_CALM, 0)


# ------------------------------------------------------------- malformed blocks


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xc6",  # an index beyond both tables
        b"\xff\xff\xff\xff\xff\xff\xff",  # an integer that does not end
        b"\xff" * 500,
        b"\x00",  # a literal cut short
        b"\x00\x01a\x05abc",
        b"\x40\x05abc",
        b"\x82\x20",  # a dynamic table size update at the end
        b"\x3f\xff\xff\x03",  # a dynamic table larger than allowed
        b"\x00\x01a\x82\xff\xff",  # Huffman: padding of more than 7 bits
        b"\x00\x01a\x81\x1e",  # Huffman: padding that is not ones
        b"\x00\x01a\x84\xff\xff\xff\xff",  # Huffman: the end of the string within it
    ],
)
def test_a_block_that_does_not_decode_is_a_connection_error(block):
    with pytest.raises(Http2Error) as caught:
        HeaderDecoder().request(block, 1)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.COMPRESSION_ERROR, 0)
    with pytest.raises(Http2Error):
        HeaderDecoder().decode(block)


def test_an_empty_block_is_a_malformed_request():
    with pytest.raises(Http2Error) as caught:
        HeaderDecoder().request(b"", 5)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 5)


# --------------------------------------------------------------- cached blocks


def test_a_cached_block_is_decoded_again_once_the_dynamic_table_has_changed():
    decoder = HeaderDecoder()
    decoder.request(literal(FIRST) + b"\x40\x01a\x011", 1)
    block = literal(FIRST) + b"\xbe"  # the newest entry
    assert decoder.request(block, 3) is decoder.request(block, 5)
    assert decoder.request(block, 5).fields == {"a": "1"}
    decoder.request(literal(FIRST) + b"\x40\x01b\x012", 7)
    assert decoder.request(block, 9).fields == {"b": "2"}
    decoder.decode(b"\x40\x01c\x013")  # trailers
    assert decoder.request(block, 11).fields == {"c": "3"}
    with pytest.raises(Http2Error):
        decoder.request(b"\x40\x01d\x014", 13)  # a malformed request, but its entry counts
    assert decoder.request(block, 15).fields == {"d": "4"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"\x20", b"", id="size update to 0"),
        pytest.param(b"\x3f\x01", b"", id="size update to 32"),
        pytest.param(b"", b"\x40\x01y\x7f\xa1\x1f" + b"a" * 4128, id="entry larger than the table"),
    ],
)
def test_a_block_that_refers_to_an_evicted_entry_is_a_compression_error(before, after):
    encoder, decoder = hpack.Encoder(), HeaderDecoder()
    decoder.request(encoder.encode([*FIRST, ("x-a", "1")]), 1)
    block = encoder.encode([*FIRST, ("x-a", "1")])
    assert decoder.request(block, 3).fields == {"x-a": "1"}
    decoder.request(before + literal(FIRST) + after, 5)
    with pytest.raises(Http2Error) as caught:
        decoder.request(block, 7)
    assert caught.value.code is ErrorCode.COMPRESSION_ERROR


_VALUES = st.sampled_from(["", "1", "22", "a" * 70, "b" * 900, "c" * 4200])
_FIELDS = st.tuples(st.sampled_from(["x-a", "x-b", "x-c", "x-d"]), _VALUES)
# Fields with whether they are never indexed; a new table size; whether to use Huffman coding;
# and which earlier block to send again.
_REQUESTS = st.tuples(
    st.lists(st.tuples(_FIELDS, st.booleans()), max_size=4),
    st.sampled_from([None, 0, 60, 200, 1000, 4096]),
    st.booleans(),
    st.none() | st.integers(0, 29),
)


@given(st.lists(_REQUESTS, min_size=1, max_size=30))
def test_cached_blocks_equal_what_hpack_decodes(requests):
    """Blocks are repeated between insertions, evictions and size updates of the dynamic table."""
    encoder, plain, ours = hpack.Encoder(), hpack.Decoder(), HeaderDecoder()
    sent: list[bytes] = []
    for number, (fields, table_bytes, huffman, repeats) in enumerate(requests):
        if table_bytes is not None:
            encoder.header_table_size = table_bytes
        pairs = [
            *FIRST,
            *(hpack.NeverIndexedHeaderTuple(*pair) if never else pair for pair, never in fields),
        ]
        block = encoder.encode(pairs, huffman=huffman)
        again = [block]
        if sent and repeats is not None:
            # The dynamic table may have changed, and with it what the bytes decode to.
            again.append(sent[repeats % len(sent)])
        sent.append(block)
        for repeated in again:
            try:
                expected = plain.decode(repeated, raw=True)
            except hpack.HPACKError:
                with pytest.raises(Http2Error) as caught:
                    ours.request(repeated, 1)
                assert caught.value.code is ErrorCode.COMPRESSION_ERROR
                return
            wanted: dict[str, str] = {}
            ordered = True
            for name, value in expected:
                key, text = name.decode(), value.decode()
                if key.startswith(":"):
                    ordered &= not any(not other.startswith(":") for other in wanted)
                    ordered &= key not in wanted
                wanted[key] = f"{wanted[key]},{text}" if key in wanted else text
            good = ordered and {":method", ":scheme"} <= set(wanted) and wanted.get(":path")
            if not good:
                with pytest.raises(Http2Error) as caught:
                    ours.request(repeated, 1)
                assert caught.value.code is ErrorCode.PROTOCOL_ERROR
                continue
            head = ours.request(repeated, number)
            assert (head.method, head.path) == (wanted[":method"], wanted[":path"])
            rest = {key: text for key, text in wanted.items() if not key.startswith(":")}
            size = sum(len(name) + len(value) + 32 for name, value in expected)
            assert head.too_large == (size > MAX_HEADER_LIST_BYTES)
            assert dict(head.fields) == ({} if head.too_large else rest)


_EDITS = st.tuples(st.sampled_from(["change", "insert", "remove"]), st.integers(0, 99), st.binary())


def edited(block: bytes, edits: list[tuple[str, int, bytes]]) -> bytes:
    raw = bytearray(block)
    for edit, place, content in edits:
        at = place % (len(raw) + 1)
        removed = 0 if edit == "insert" else 1
        raw[at : at + removed] = b"" if edit == "remove" else content[:2]
    return bytes(raw)


_SHORT = st.tuples(st.sampled_from(["x-a", "x-b"]), st.text("abc", max_size=9))
_DAMAGED = st.tuples(st.lists(_SHORT, max_size=4), st.booleans(), st.lists(_EDITS, max_size=1))


@given(st.lists(_DAMAGED, min_size=1, max_size=10))
def test_damaged_blocks_decode_as_by_hpack_or_raise_http2_errors(requests):
    encoder, plain, ours = hpack.Encoder(), hpack.Decoder(), HeaderDecoder()
    damaged = False
    for fields, huffman, edits in requests:
        block = edited(encoder.encode([*FIRST, *fields], huffman=huffman), edits)
        damaged = damaged or bool(edits)
        try:
            expected = [(bytes(name), bytes(value)) for name, value in plain.decode(block, True)]
        except hpack.HPACKError:
            with pytest.raises(Http2Error) as caught:
                ours.request(block, 1)
            assert (caught.value.code, caught.value.stream_id) == (ErrorCode.COMPRESSION_ERROR, 0)
            assert damaged
            return
        refused = None
        try:
            head = ours.request(block, 1)
        except Http2Error as error:
            refused = (error.code, error.stream_id)
        if refused:
            # The dynamic table is still in step, so the connection stays usable.
            assert refused == (ErrorCode.PROTOCOL_ERROR, 1)
            assert damaged
            continue
        fields_sent: dict[str, str] = {}
        for name, value in expected:
            key, text = name.decode(), value.decode("latin-1")
            fields_sent[key] = f"{fields_sent[key]},{text}" if key in fields_sent else text
        fields_sent.pop(":authority", None)  # nothing reads it
        received = {":method": head.method, ":path": head.path, **head.fields}
        assert {":scheme": fields_sent[":scheme"], **received} == fields_sent


# ------------------------------------------------------------------- encoding


@given(
    st.lists(
        st.tuples(
            st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=300),
            st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20_000),
        ),
        max_size=5,
    )
)
def test_hpack_decodes_our_literals_and_leaves_its_dynamic_table_empty(fields):
    decoder = hpack.Decoder(2**20)
    block = no_table() + status_200() + encode(fields)
    assert decoder.decode(block) == [(":status", "200"), *fields]
    assert not decoder.header_table.dynamic_entries


def test_a_request_encoded_by_hpack_is_decoded():
    block = hpack.Encoder().encode(request_fields("/x.Y/Z", grpc_timeout="5S"))
    head = HeaderDecoder().request(block, 1)
    assert (head.path, head.fields["grpc-timeout"]) == ("/x.Y/Z", "5S")
