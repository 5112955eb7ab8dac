"""Length-prefixed messages reassembled from the pieces of a body."""

import contextlib
import gzip
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidArgument, Overloaded, ServiceError, TooLarge, Unimplemented
from service.transport.framing import MessageBuffer, prefix, whole_message
from tests.support.http2_peer import message

MOST = 100_000


class HeldBytes:
    """A server's count of held bytes."""

    def __init__(self, most: int = 10**9):
        self.bytes = self.of_last = 0
        self._most = most

    def __call__(self, change: int, held: int) -> None:
        self.bytes += change
        self.of_last = held
        if change > 0 and self.bytes > self._most:
            raise Overloaded("too many", 1.0)


def message_buffer(encoding: str = "identity", held: HeldBytes | None = None) -> MessageBuffer:
    return MessageBuffer(encoding, MOST, held or HeldBytes())


def test_prefix_is_that_of_an_uncompressed_message():
    assert prefix(258) + b"x" * 258 == message(b"x" * 258)


@given(st.binary(max_size=30), st.binary(max_size=8), st.integers(0, 20))
def test_a_whole_message_is_what_the_buffer_would_make_of_it(body, rest, cut):
    for data in (message(body), message(body) + rest, message(body)[: -cut or None], rest, b""):
        whole = whole_message(data, MOST)
        buffer = message_buffer()
        complete = False
        with contextlib.suppress(ServiceError):
            complete = data[:1] != b"\1" and buffer.feed(data) and not buffer.more_than_one
        assert (whole is not None) == complete
        if whole is not None:
            assert whole == buffer.take()


def test_what_is_compressed_or_long_is_left_to_the_buffer():
    assert whole_message(message(bytes(16_379)), MOST) == bytes(16_379)
    assert whole_message(message(bytes(16_380)), MOST) is None
    assert whole_message(message(b"1234"), 4) == b"1234"
    assert whole_message(message(b"12345"), 4) is None
    assert whole_message(message(gzip.compress(b"x"), 1), MOST) is None


_BODIES = st.one_of(st.binary(max_size=30), st.integers(0, 50_000).map(bytes))


@given(
    st.lists(st.tuples(_BODIES, st.booleans()), max_size=8),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=20),
    st.booleans(),
    st.binary(max_size=4),
)
def test_messages_are_reassembled_from_any_pieces(bodies, sizes, greedy, rest):
    held = HeldBytes()
    buffer = message_buffer("gzip", held)
    data = b"".join(
        message(gzip.compress(body, 1), 1) if small else message(body) for body, small in bodies
    )
    data += rest
    got, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        complete = buffer.feed(data[at : at + size])
        assert complete == buffer.ready
        at, turn = at + size, turn + 1
        while greedy and buffer.ready:
            got.append(buffer.take())
    while buffer.ready:
        got.append(buffer.take())
    assert got == [body for body, _ in bodies]
    assert buffer.held_bytes == len(rest)
    buffer.close()
    assert (buffer.held_bytes, held.bytes) == (0, 0)


def test_held_bytes_are_reported_until_a_message_is_taken():
    held = HeldBytes()
    buffer = message_buffer(held=held)
    body = message(bytes(50_000))
    assert not buffer.feed(body[:40_000])
    assert held.bytes == 40_000
    other = message_buffer(held=held)
    assert not other.feed(message(bytes(90_000))[:20_000])
    assert (held.bytes, held.of_last) == (60_000, 20_000)
    other.close()
    assert buffer.feed(body[40_000:] + message(b"second"))
    # Below the next step, so not reported yet.
    assert held.bytes == 40_000
    assert buffer.feed(bytes(60_000))
    assert held.bytes == 110_016
    assert buffer.more_than_one
    assert buffer.take() == bytes(50_000)
    assert (held.bytes, buffer.ready) == (60_011, True)
    assert buffer.take() == b"second"
    buffer.close()
    assert held.bytes == 0


def test_small_messages_are_not_reported_and_pass_a_full_server():
    buffer = message_buffer(held=HeldBytes(0))
    assert buffer.feed(message(bytes(10_000)))
    with pytest.raises(Overloaded):
        message_buffer(held=HeldBytes(0)).feed(message(bytes(20_000)))


def test_close_gives_back_the_bytes_of_a_refused_message():
    held = HeldBytes(30_000)
    buffer = message_buffer(held=held)
    with pytest.raises(Overloaded):
        buffer.feed(message(bytes(50_000))[:40_000])
    buffer.close()
    assert held.bytes == 0


def test_a_message_that_is_too_large_is_refused_by_its_prefix():
    with pytest.raises(TooLarge):
        message_buffer().feed(b"\0" + (MOST + 1).to_bytes(4, "big"))
    buffer = message_buffer()
    assert buffer.feed(message(b"first") + b"\0\xff\xff\xff\xff")
    assert buffer.take() == b"first"
    with pytest.raises(TooLarge):
        assert buffer.ready


@pytest.mark.parametrize("flag", [2, 128, 255])
def test_an_invalid_compressed_flag_is_an_error(flag):
    with pytest.raises(ServiceError, match=f"got compressed flag {flag}, wanted 0 or 1"):
        message_buffer().feed(message(b"", flag))


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_messages_are_bounded_and_have_to_be_complete(encoding, compress):
    def taken(body: bytes) -> bytes:
        buffer = message_buffer(encoding)
        assert buffer.feed(message(body, 1))
        return buffer.take()

    assert taken(compress(b"")) == b""
    assert taken(compress(bytes(MOST))) == bytes(MOST)
    with pytest.raises(TooLarge):
        taken(compress(bytes(MOST + 1)))
    for broken in (b"", b"nonsense", compress(b"abc")[:-1], compress(b"abc") + b"x"):
        with pytest.raises(InvalidArgument):
            taken(broken)


def test_a_gzip_bomb_with_an_honest_length_is_not_decompressed():
    bomb = gzip.compress(bytes(2**28), 1)
    buffer = MessageBuffer("gzip", 2**26, HeldBytes())
    buffer.feed(message(bomb, 1))
    began = time.process_time()
    with pytest.raises(TooLarge, match=str(2**28)):
        buffer.take()
    assert time.process_time() - began < 0.1


def test_an_unsupported_encoding_fails_only_compressed_messages():
    buffer = message_buffer("br")
    assert buffer.feed(message(b"plain") + message(b"x", 1))
    assert buffer.take() == b"plain"
    assert buffer.ready
    with pytest.raises(Unimplemented, match="'br', wanted one of identity,deflate,gzip"):
        buffer.take()
    buffer = message_buffer()
    buffer.feed(message(b"x", 1))
    with pytest.raises(ServiceError, match="compressed, but there is no grpc-encoding"):
        buffer.take()


def test_the_cost_of_a_body_is_linear_in_its_length():
    """For any size of its messages, and of the pieces in which it is received."""
    buffer = message_buffer()
    began = time.process_time()
    buffer.feed(bytes(5) * 50_000)
    count = 0
    while buffer.ready:
        assert buffer.take() == b""
        count += 1
    assert count == 50_000
    buffer = MessageBuffer("identity", 10**6, HeldBytes())
    data = message(bytes(200_000))
    for at in range(0, len(data), 2):
        buffer.feed(data[at : at + 2])
    assert buffer.take() == bytes(200_000)
    assert time.process_time() - began < 2
