"""gRPC's messages put together from a body, however it is cut."""

import gzip
import time
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidArgument, ServiceError, TooLarge, Unimplemented
from service.transport.framing import MessageBuffer, prefix
from tests.support.http2_peer import message

MOST = 100_000


class Held:
    """What a server counts as held."""

    def __init__(self, most: int = 10**9):
        self.bytes = 0
        self._most = most

    def __call__(self, change: int) -> None:
        self.bytes += change
        if change > 0 and self.bytes > self._most:
            raise TooLarge("too many")


def reader(encoding: str = "identity", held: Held | None = None) -> MessageBuffer:
    return MessageBuffer(encoding, MOST, held or Held())


def test_a_prefix_is_that_of_a_plain_message():
    assert prefix(258) + b"x" * 258 == message(b"x" * 258)


_BODIES = st.one_of(st.binary(max_size=30), st.integers(0, 50_000).map(bytes))


@given(
    st.lists(st.tuples(_BODIES, st.booleans()), max_size=8),
    st.lists(st.integers(1, 30_000), min_size=1, max_size=20),
    st.booleans(),
    st.binary(max_size=4),
)
def test_messages_come_out_as_they_went_in(bodies, sizes, greedy, rest):
    held = Held()
    under = reader("gzip", held)
    data = b"".join(
        message(gzip.compress(body, 1), 1) if small else message(body) for body, small in bodies
    )
    data += rest
    got, at, turn = [], 0, 0
    while at < len(data):
        size = sizes[turn % len(sizes)]
        complete = under.feed(data[at : at + size])
        assert complete == under.ready
        at, turn = at + size, turn + 1
        while greedy and under.ready:
            got.append(under.take())
    while under.ready:
        got.append(under.take())
    assert got == [body for body, _ in bodies]
    assert under.held_bytes == len(rest)
    under.close()
    assert (under.held_bytes, held.bytes) == (0, 0)


def test_what_is_held_is_counted_until_it_is_taken():
    held = Held()
    under = reader(held=held)
    body = message(bytes(50_000))
    assert not under.feed(body[:40_000])
    assert held.bytes == 40_000
    assert under.feed(body[40_000:] + message(b"second"))
    # To the next step of it.
    assert held.bytes == 40_000
    assert under.feed(bytes(60_000))
    assert held.bytes == 110_016
    assert under.more_than_one
    assert under.take() == bytes(50_000)
    assert (held.bytes, under.ready) == (60_011, True)
    assert under.take() == b"second"
    under.close()
    assert held.bytes == 0


def test_small_ones_are_not_counted_and_pass_where_much_is_held():
    under = reader(held=Held(0))
    assert under.feed(message(bytes(10_000)))
    with pytest.raises(TooLarge):
        reader(held=Held(0)).feed(message(bytes(20_000)))


def test_too_much_that_is_held_is_let_go_of():
    held = Held(30_000)
    under = reader(held=held)
    with pytest.raises(TooLarge):
        under.feed(message(bytes(50_000))[:40_000])
    under.close()
    assert held.bytes == 0


def test_a_message_that_is_too_large_is_known_by_its_prefix():
    with pytest.raises(TooLarge):
        reader().feed(b"\0" + (MOST + 1).to_bytes(4, "big"))
    under = reader()
    assert under.feed(message(b"first") + b"\0\xff\xff\xff\xff")
    assert under.take() == b"first"
    with pytest.raises(TooLarge):
        assert under.ready


@pytest.mark.parametrize("flag", [2, 128, 255])
def test_a_flag_that_is_not_known_is_no_message(flag):
    with pytest.raises(ServiceError, match=f"begins with {flag}, wanted 0 or 1"):
        reader().feed(message(b"", flag))


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_compressed_messages_are_bounded_and_whole(encoding, compress):
    def taken(body: bytes) -> bytes:
        under = reader(encoding)
        assert under.feed(message(body, 1))
        return under.take()

    assert taken(compress(b"")) == b""
    assert taken(compress(bytes(MOST))) == bytes(MOST)
    with pytest.raises(TooLarge):
        taken(compress(bytes(MOST + 1)))
    for broken in (b"", b"nonsense", compress(b"abc")[:-1], compress(b"abc") + b"x"):
        with pytest.raises(InvalidArgument):
            taken(broken)


def test_an_honest_bomb_is_not_opened():
    bomb = gzip.compress(bytes(2**28), 1)
    under = MessageBuffer("gzip", 2**26, Held())
    under.feed(message(bomb, 1))
    began = time.process_time()
    with pytest.raises(TooLarge, match=str(2**28)):
        under.take()
    assert time.process_time() - began < 0.1


def test_encodings_that_are_not_known_matter_where_they_are_used():
    under = reader("br")
    assert under.feed(message(b"plain") + message(b"x", 1))
    assert under.take() == b"plain"
    assert under.ready
    with pytest.raises(Unimplemented, match="'br', wanted one of identity,deflate,gzip"):
        under.take()
    under = reader()
    under.feed(message(b"x", 1))
    with pytest.raises(ServiceError, match="compressed, but there is no grpc-encoding"):
        under.take()


def test_the_cost_of_a_body_grows_with_its_length_alone():
    """However small its messages, and however small the pieces that it comes in."""
    under = reader()
    began = time.process_time()
    under.feed(bytes(5) * 50_000)
    count = 0
    while under.ready:
        assert under.take() == b""
        count += 1
    assert count == 50_000
    under = MessageBuffer("identity", 10**6, Held())
    data = message(bytes(200_000))
    for at in range(0, len(data), 2):
        under.feed(data[at : at + 2])
    assert under.take() == bytes(200_000)
    assert time.process_time() - began < 2
