"""Header blocks, against the hpack library's own encoder and decoder."""

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
from tests.support.http2_peer import literal, request

FIRST = [(":method", "POST"), (":scheme", "http"), (":path", "/a/b")]


def decoded(*fields: tuple[str, str], first: list[tuple[str, str]] = FIRST):
    return HeaderDecoder().request(literal([*first, *fields]), 7)


# -------------------------------------------------------------------- requests


def test_a_request_is_its_fields():
    head = decoded(("te", "trailers"), ("content-length", "12"), ("x-a", "1"), ("x-a", "2"))
    assert (head.method, head.path, head.content_length) == ("POST", "/a/b", 12)
    assert dict(head.fields) == {"te": "trailers", "content-length": "12", "x-a": "1,2"}
    assert not head.too_large


@pytest.mark.parametrize("left_out", [":method", ":scheme", ":path"])
def test_without_a_pseudo_field_it_is_malformed(left_out):
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
def test_a_malformed_field_ends_the_stream(field):
    with pytest.raises(Http2Error) as caught:
        decoded(field)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 7)


def test_pseudo_fields_come_first_and_have_good_values():
    for fields in (
        [*FIRST[:2], ("x-a", "1"), FIRST[2]],
        [*FIRST[:2], (":path", "")],
        [*FIRST[:2], (":path", "/a\nb")],
        [*FIRST, (":authority", "a\rb")],
    ):
        with pytest.raises(Http2Error) as caught:
            decoded(first=fields)
        assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 7)


def test_two_content_lengths_have_to_agree():
    assert decoded(("content-length", "5"), ("content-length", "5")).content_length == 5
    with pytest.raises(Http2Error):
        decoded(("content-length", "5"), ("content-length", "6"))


def test_trailers_are_checked_like_other_fields():
    check_trailers([(b"x-a", b"1")], 3)
    for name, value in ((b":path", b"/"), (b"X", b"1"), (b"a", b"\n"), (b"connection", b"x")):
        with pytest.raises(Http2Error) as caught:
            check_trailers([(name, value)], 3)
        assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 3)


def test_more_fields_than_are_taken_are_told_of_and_not_kept():
    head = decoded(("content-type", "application/grpc"), ("x-a", "a" * MAX_HEADER_LIST_BYTES))
    assert head.too_large
    assert dict(head.fields) == {"content-type": "application/grpc"}
    assert not decoded(("x-a", "a" * (MAX_HEADER_LIST_BYTES - 500))).too_large


def test_a_small_block_that_becomes_large_ends_the_connection():
    encoder = hpack.Encoder()
    decoder = HeaderDecoder()
    decoder.request(encoder.encode([*FIRST, ("x-bomb", "a" * 3900)]), 1)
    with pytest.raises(Http2Error) as caught:
        decoder.request(b"\xbe" * 10_000, 3)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.ENHANCE_YOUR_CALM, 0)


# ------------------------------------------------------- HPACK, the wrong way


@pytest.mark.parametrize(
    "block",
    [
        b"\x80",  # index 0
        b"\xc6",  # an index beyond both tables
        b"\xff\xff\xff\xff\xff\xff\xff",  # an integer without an end
        b"\xff" * 500,
        b"\x00",  # a literal cut short
        b"\x00\x01a\x05abc",
        b"\x40\x05abc",
        b"\x82\x20",  # a change of the table's size at the end
        b"\x3f\xff\xff\x03",  # a table larger than allowed
        b"\x00\x01a\x82\xff\xff",  # Huffman: padding of more than 7 bits
        b"\x00\x01a\x81\x1e",  # Huffman: padding that is not ones
        b"\x00\x01a\x84\xff\xff\xff\xff",  # Huffman: the end of the string within it
    ],
)
def test_what_does_not_decode_ends_the_connection(block):
    with pytest.raises(Http2Error) as caught:
        HeaderDecoder().request(block, 1)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.COMPRESSION_ERROR, 0)
    with pytest.raises(Http2Error):
        HeaderDecoder().decode(block)


def test_an_empty_block_is_a_malformed_request():
    with pytest.raises(Http2Error) as caught:
        HeaderDecoder().request(b"", 5)
    assert (caught.value.code, caught.value.stream_id) == (ErrorCode.PROTOCOL_ERROR, 5)


# ---------------------------------------------------- what was decoded before


def test_a_block_means_what_the_table_makes_of_it():
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
        decoder.request(b"\x40\x01d\x014", 13)  # no request, but the table has it
    assert decoder.request(block, 15).fields == {"d": "4"}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        pytest.param(b"\x20", b"", id="table of nothing"),
        pytest.param(b"\x3f\x01", b"", id="smaller table"),
        pytest.param(b"", b"\x40\x01y\x7f\xa1\x1f" + b"a" * 4128, id="entry that does not fit"),
    ],
)
def test_a_table_that_was_emptied_has_nothing_left_to_look_up(before, after):
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
# Fields, each indexed or never; the size of the table; Huffman's code; and which of the blocks
# before is sent once more.
_REQUESTS = st.tuples(
    st.lists(st.tuples(_FIELDS, st.booleans()), max_size=4),
    st.sampled_from([None, 0, 60, 200, 1000, 4096]),
    st.booleans(),
    st.none() | st.integers(0, 29),
)


@given(st.lists(_REQUESTS, min_size=1, max_size=30))
def test_what_was_looked_up_is_what_would_have_been_decoded(requests):
    """The same lists come again and again, between changes of the table in every way."""
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
            # Bytes of before, whatever they mean by now, as a client without a table may send.
            again.append(sent[repeats % len(sent)])
        sent.append(block)
        for each in again:
            try:
                expected = plain.decode(each, raw=True)
            except hpack.HPACKError:
                with pytest.raises(Http2Error) as caught:
                    ours.request(each, 1)
                assert caught.value.code is ErrorCode.COMPRESSION_ERROR
                return
            wanted: dict[str, str] = {}
            ordered = True
            for name, value in expected:
                key, text = name.decode(), value.decode()
                if key.startswith(":"):
                    ordered &= not any(not known.startswith(":") for known in wanted)
                    ordered &= key not in wanted
                wanted[key] = f"{wanted[key]},{text}" if key in wanted else text
            good = ordered and {":method", ":scheme"} <= set(wanted) and wanted.get(":path")
            if not good:
                with pytest.raises(Http2Error) as caught:
                    ours.request(each, 1)
                assert caught.value.code is ErrorCode.PROTOCOL_ERROR
                continue
            head = ours.request(each, number)
            assert (head.method, head.path) == (wanted[":method"], wanted[":path"])
            rest = {key: text for key, text in wanted.items() if not key.startswith(":")}
            size = sum(len(name) + len(value) + 32 for name, value in expected)
            assert head.too_large == (size > MAX_HEADER_LIST_BYTES)
            assert dict(head.fields) == ({} if head.too_large else rest)


@given(st.lists(st.binary(max_size=40), max_size=10))
def test_no_bytes_do_anything_but_decode_or_fail(blocks):
    decoder = HeaderDecoder()
    for block in blocks:
        try:
            decoder.request(block, 1)
        except Http2Error as error:
            if not error.stream_id:
                return


# -------------------------------------------------------------------- sent


@given(
    st.lists(
        st.tuples(
            st.text("abcdefghijklmnopqrstuvwxyz-", min_size=1, max_size=300),
            st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=20_000),
        ),
        max_size=5,
    )
)
def test_what_is_encoded_is_read_by_another_library_and_leaves_its_table(fields):
    decoder = hpack.Decoder(2**20)
    block = no_table() + status_200() + encode(fields)
    assert decoder.decode(block) == [(":status", "200"), *fields]
    assert not decoder.header_table.dynamic_entries


def test_a_whole_request_of_another_library():
    block = hpack.Encoder().encode(request("/x.Y/Z", grpc_timeout="5S"))
    head = HeaderDecoder().request(block, 1)
    assert (head.path, head.fields["grpc-timeout"]) == ("/x.Y/Z", "5S")
