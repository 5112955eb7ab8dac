"""Flow control both ways, and connections under whatever bytes hypothesis thinks of."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, StreamEnded, TrailersReceived
from hypothesis import given, settings
from hypothesis import strategies as st

from service.transport.http2.frames import MAX_FRAME_BYTES, PREFACE
from service.transport.http2.headers import encode, status_200
from tests.support import http2_peer as peer
from tests.support.http2_peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    MAX_FRAME,
    PADDED,
    RST_STREAM,
    WINDOW_UPDATE,
    Session,
    connected,
    end,
    frame,
    headers,
    request,
    rst_stream,
    window_update,
)  # fmt: skip

HEAD = status_200() + encode([("content-type", "application/grpc")])
TRAILERS = encode([("grpc-status", "0")])
BODY = bytes(range(251)) * 400  # 100,400 bytes; a piece out of place would be seen


def data_of(sent, number=1):
    return b"".join(each.payload for each in sent if each[0] == DATA and each.stream == number)


# ------------------------------------------------------------------ what is sent


@pytest.mark.parametrize("whole", [True, False])
def test_a_peer_that_grants_byte_by_byte_gets_every_byte_and_then_the_trailers(whole):
    async def scenario(session):
        asked = await session.ask(1)
        if whole:
            asked.stream.respond(HEAD, (b"0123456789",), TRAILERS)
        else:
            asked.stream.send_headers(HEAD)
            asked.stream.send_data(b"0123", b"", memoryview(b"456789"))
            asked.stream.end(TRAILERS)
        sent = await session.answers()
        assert [each.kind for each in sent] == [HEADERS]
        for number in range(10):
            (byte, *rest) = await session.send(window_update(1, 1))
            assert byte == (DATA, 0, 1, b"%d" % number)
            assert [each.kind for each in rest] == ([HEADERS] if number == 9 else [])
        assert rest[0].flags == END_HEADERS | END_STREAM

    connected(scenario, (INITIAL_WINDOW, 0))


@pytest.mark.parametrize("number", [0, 1])
def test_either_window_holds_back_what_is_sent(number):
    async def scenario(session):
        asked = await session.ask(1)
        if number == 0:
            await session.send(window_update(1, 10**6))
        else:
            await session.send(window_update(0, 10**6))
        asked.stream.respond(HEAD, (BODY,), TRAILERS)
        sent = await session.answers()
        assert len(data_of(sent)) == 65_535
        assert await session.answers() == []
        more = await session.send(window_update(number, 30_000))
        assert len(data_of(more)) == 30_000
        last = await session.send(window_update(number, 30_000))
        assert data_of(sent) + data_of(more) + data_of(last) == BODY
        assert (last[-1].kind, last[-1].flags & END_STREAM) == (HEADERS, END_STREAM)

    connected(scenario)


def test_a_window_may_shrink_below_what_was_sent_and_grow_again():
    """RFC 9113 section 6.9.2: it is negative then, and all of what is queued waits."""

    async def scenario(session):
        asked = await session.ask(1)
        asked.stream.respond(HEAD, (BODY,), TRAILERS)
        sent = data_of(await session.answers())
        assert len(sent) == 65_535
        assert data_of(await session.send(peer.settings((INITIAL_WINDOW, 100)))) == b""
        await session.send(window_update(0, 10**6))
        assert data_of(await session.send(window_update(1, 65_435))) == b""  # it is 0 now
        more = data_of(await session.send(window_update(1, 1)))
        assert len(more) == 1
        last = await session.send(peer.settings((INITIAL_WINDOW, 10**6)))
        assert sent + more + data_of(last) == BODY
        assert last[-1].flags & END_STREAM

    connected(scenario)


@pytest.mark.parametrize("window", [0, 1, 100, 64_000])
def test_a_window_that_shrinks_before_the_turn_came_is_heeded(window):
    async def scenario(session):
        asked = await session.ask(1)
        await session.send(window_update(0, 10**6))
        asked.stream.respond(HEAD, (BODY,), TRAILERS)
        sent = data_of(await session.answers())
        await session.send(window_update(1, 1))
        # In line to be sent, and in the same turn of the loop the window is gone.
        session.connection.data_received(window_update(1, 1000))
        session.connection.data_received(peer.settings((INITIAL_WINDOW, window)))
        more = data_of(await session.answers())
        assert more == b""
        last = data_of(await session.send(peer.settings((INITIAL_WINDOW, 10**6))))
        assert len(sent) + 1 + len(last) == len(BODY)
        assert BODY.endswith(last)

    connected(scenario)


def test_what_is_small_enough_goes_out_at_once_in_frames_that_the_peer_takes():
    async def scenario(session):
        await session.send(window_update(0, 10**6))
        asked = await session.ask(1)
        asked.stream.respond(HEAD, (BODY[:7], BODY[7:40_000]), TRAILERS)
        sent = await session.answers()
        assert [len(each.payload) for each in sent if each.kind == DATA] == [16384, 16384, 7232]
        assert data_of(sent) == BODY[:40_000]
        assert sent[-1].flags == 0x5

    connected(scenario)


def test_streams_take_turns_frame_by_frame():
    async def scenario(session):
        await session.send(window_update(0, 10**6))
        for asked in [await session.ask(number) for number in (1, 3, 5)]:
            asked.stream.send_headers(HEAD)
            asked.stream.send_data(BODY[:50_000])
            asked.stream.end(TRAILERS)
        sent = await session.answers()
        order = [each.stream for each in sent if each.kind == DATA]
        assert order[:6] == [1, 3, 5, 1, 3, 5]
        assert all(data_of(sent, number) == BODY[:50_000] for number in (1, 3, 5))

    connected(scenario)


def test_a_small_answer_does_not_overtake_in_its_own_stream_but_does_wait_its_turn():
    async def scenario(session):
        large, small = await session.ask(1), await session.ask(3)
        large.stream.respond(HEAD, (BODY,), TRAILERS)
        small.stream.respond(HEAD, (b"small",), TRAILERS)
        sent = await session.answers()
        assert data_of(sent, 3) == b"small"
        ends = [each.stream for each in sent if each.flags & END_STREAM and each.kind == HEADERS]
        assert ends == [3]

    connected(scenario)


def test_frames_are_no_larger_than_the_peer_takes():
    async def scenario(session):
        await session.send(window_update(0, 10**6))
        asked = await session.ask(1)
        asked.stream.respond(HEAD, (BODY,), TRAILERS)
        sizes = [len(each.payload) for each in await session.answers() if each.kind == DATA]
        assert max(sizes) == 20_000
        assert sum(sizes) == len(BODY)

    connected(scenario, (MAX_FRAME, 20_000), (INITIAL_WINDOW, 10**6))


def test_a_writer_waits_for_space_and_is_told_when_the_stream_ends():
    async def scenario(session):
        asked = await session.ask(1)
        asked.stream.send_headers(HEAD)
        asked.stream.send_data(BODY, BODY)
        waiting = asyncio.create_task(asked.stream.wait_writable())
        await session.answers()
        assert not waiting.done()
        await session.send(window_update(0, 100_000), window_update(1, 100_000))
        await asyncio.wait_for(waiting, 1)
        asked.stream.send_data(BODY)
        again = asyncio.create_task(asked.stream.wait_writable())
        await session.answers()
        await session.send(rst_stream(1))
        await asyncio.wait_for(again, 1)

    connected(scenario)


def test_whoever_had_to_wait_is_told_that_its_answer_is_out():
    async def scenario(session):
        asked = await session.ask(1)
        asked.stream.respond(HEAD, (BODY,), TRAILERS)
        await session.answers()
        assert not asked.is_sent
        await session.send(window_update(0, 10**6), window_update(1, 10**6))
        assert asked.is_sent
        at_once = await session.ask(3)
        at_once.stream.respond(HEAD, (b"small",), TRAILERS)
        assert at_once.is_sent

    connected(scenario)


def test_a_blocked_transport_is_not_written_to():
    async def scenario(session):
        await session.send(window_update(0, 10**7))
        asked = await session.ask(1)
        session.connection.pause_writing()
        asked.stream.respond(HEAD, (BODY,), TRAILERS)
        small = await session.ask(3)
        small.stream.respond(HEAD, (b"small",), TRAILERS)
        assert await session.answers() == []
        session.connection.resume_writing()
        sent = await session.answers()
        assert (data_of(sent, 1), data_of(sent, 3)) == (BODY, b"small")

    connected(scenario, (INITIAL_WINDOW, 10**7))


# -------------------------------------------------------------- what is taken


def test_what_is_consumed_is_granted_and_no_more():
    async def scenario(session):
        asked = await session.ask(1, ends=False)
        asked.take = lambda _chunk: None
        chunk = bytes(MAX_FRAME_BYTES)
        for _ in range(4):
            assert await session.send(frame(DATA, 0, 1, chunk)) == []
        asked.stream.consumed(2**20 - 1)
        (grant,) = await session.answers()
        assert (grant.kind, grant.stream) == (WINDOW_UPDATE, 1)
        assert int.from_bytes(grant.payload, "big") == 2**20 - 1
        await session.send(*[frame(DATA, 0, 1, chunk)] * 3)
        sent = await session.send(frame(DATA, 0, 1, chunk))
        assert [(each.kind, each.code) for each in sent] == [(RST_STREAM, FLOW_CONTROL_ERROR)]
        assert asked.is_reset

    connected(scenario)


def test_padding_counts_and_is_granted_again():
    async def scenario(session):
        asked = await session.ask(1, ends=False)
        padded = b"\xff" + b"x" + bytes(255)
        granted = 0
        for _ in range(20_000):
            session.connection.data_received(frame(DATA, PADDED, 1, padded))
        for each in await session.answers():
            if each.kind == WINDOW_UPDATE and each.stream == 1:
                granted += int.from_bytes(each.payload, "big")
        assert session.alive
        assert 20_000 * 257 - granted < 2**20
        assert asked.body == b"x" * 20_000

    connected(scenario)


def test_more_than_the_window_of_the_connection_ends_it():
    async def scenario(session):
        window = session.connection._reader._receive_window
        session.connection._reader._credit = lambda _count: None
        chunk = bytes(MAX_FRAME_BYTES)
        number, sent = 1, []
        while not any(each.kind == GOAWAY for each in sent):
            assert window >= 0
            await session.ask(number, ends=False)
            for _ in range(4):
                if session.alive:
                    sent = await session.send(frame(DATA, 0, number, chunk))
                    window -= len(chunk)
            number += 2
        assert sent[-1].code == FLOW_CONTROL_ERROR

    connected(scenario)


def test_the_connection_is_granted_what_refused_streams_use():
    """Else a few refused uploads would stop all others for good."""

    async def scenario(session):
        asked = await session.ask(1, ends=False)
        asked.stream.end(HEAD + TRAILERS)
        granted = 0
        for _ in range(200):
            for each in await session.send(frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES))):
                if (each.kind, each.stream) == (WINDOW_UPDATE, 0):
                    granted += int.from_bytes(each.payload, "big")
        assert session.alive
        assert granted >= 40 * 2**20

    connected(scenario)


# ---------------------------------------------------------------- by hypothesis


def conversation() -> tuple[bytes, int]:
    """What an independent client sends for some calls, byte by byte, and their number."""
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    data = client.data_to_send()
    for number in range(3):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, request(f"/a/{number}", x_n="n" * number * 40))
        client.send_data(stream, b"message %d" % number, pad_length=number or None)
        if number == 1:
            client.send_headers(stream, [("x-trailer", "1")], end_stream=True)
        else:
            client.end_stream(stream)
        client.ping(b"%08d" % number)
        data += client.data_to_send()
    return data, 3


CONVERSATION, CALLS = conversation()


def answering(stream: Any) -> None:
    """Answers each request with its path and body."""
    asked = peer.Asked(stream)
    stream.receiver = asked

    def ended() -> None:
        body = f"{stream.head.path} ".encode() + asked.body
        stream.respond(HEAD, (body,), TRAILERS)

    asked.on_end = ended  # type: ignore[method-assign]


def answers_to(pieces: list[bytes]) -> dict[int, bytes]:
    async def run() -> dict[int, bytes]:
        session = Session(answering)
        for piece in pieces:
            session.connection.data_received(piece)
        await session.answers()
        client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        for _ in range(CALLS):
            client.send_headers(client.get_next_available_stream_id(), request(), end_stream=True)
        client.data_to_send()
        bodies: dict[int, bytes] = {}
        ends = set()
        for event in client.receive_data(strip_pings(bytes(session.wire.sent))):
            if isinstance(event, DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, TrailersReceived):
                assert event.stream_id in bodies
            elif isinstance(event, StreamEnded):
                ends.add(event.stream_id)
        assert ends == set(bodies)
        await end(session)
        return bodies

    return asyncio.run(run())


def strip_pings(sent: bytes) -> bytes:
    """Without the answers to pings that the client of `answers_to` has not sent."""
    return b"".join(frame(*each) for each in peer.parsed(sent) if each.kind != peer.PING)


WANTED = {1: b"/a/0 message 0", 3: b"/a/1 message 1", 5: b"/a/2 message 2"}


@settings(max_examples=60)
@given(st.lists(st.integers(1, len(CONVERSATION) - 1), max_size=30))
def test_however_the_bytes_are_cut_the_answers_are_the_same(cuts):
    edges = [0, *sorted(set(cuts)), len(CONVERSATION)]
    pieces = [CONVERSATION[a:b] for a, b in pairwise(edges)]
    assert answers_to(pieces) == WANTED


def test_byte_by_byte_the_answers_are_the_same():
    assert answers_to([bytes((byte,)) for byte in CONVERSATION]) == WANTED


_BODY_FRAMES = st.lists(
    st.tuples(st.sampled_from([1, 3]), st.sampled_from([0, 0, 0, PADDED]), st.binary(max_size=40)),
    max_size=20,
)


@settings(max_examples=100)
@given(_BODY_FRAMES, st.integers(1, 300))
def test_bodies_are_put_together_however_their_frames_mix_and_are_cut(body_frames, cut):
    wanted = {1: b"", 3: b""}
    data = PREFACE + peer.settings() + headers(1, request()) + headers(3, request())
    for number, flags, payload in body_frames:
        wanted[number] += payload
        padding = b"\x02" if flags else b""
        data += frame(DATA, flags, number, padding + payload + bytes(2 * len(padding)))
    data += frame(DATA, END_STREAM, 1, b"end") + frame(DATA, END_STREAM, 3)

    async def run() -> None:
        session = Session()
        for start in range(0, len(data), cut):
            session.connection.data_received(data[start : start + cut])
        asked = session.asked
        assert {number: each.body for number, each in asked.items()} == {
            1: wanted[1] + b"end",
            3: wanted[3],
        }
        assert asked[1].is_ended
        assert asked[3].is_ended
        await end(session)

    asyncio.run(run())


def test_frames_of_a_body_that_come_together_are_one_to_its_receiver():
    async def scenario(session):
        asked = await session.ask(1, ends=False)
        chunks = []
        asked.take = chunks.append
        part = frame(DATA, 0, 1, b"0123456789")
        await session.send(part * 3 + part[:12], part[12:] + frame(DATA, END_STREAM, 1, b"x"))
        assert list(map(len, chunks)) == [30, 10, 1]
        assert asked.is_ended

    connected(scenario)


def test_no_more_is_read_than_is_answered_in_a_turn_of_the_loop():
    def asked(first: int, count: int) -> bytes:
        numbers = range(first, first + 2 * count, 2)
        return b"".join(headers(each, request(), END_HEADERS | END_STREAM) for each in numbers)

    async def run() -> None:
        session = Session(answering)
        await session.greet()
        for each in (asked(1, 500), asked(1001, 501)):
            assert session.wire.reading
            session.connection.data_received(each)
        assert not session.wire.reading
        assert len([each for each in await session.answers() if each.kind == DATA]) == 1001
        assert session.wire.reading
        # Nor while the peer does not read what it is sent.
        session.connection.pause_writing()
        session.connection.data_received(asked(2003, 1001))
        await session.answers()
        assert not session.wire.reading
        session.connection.resume_writing()
        assert session.wire.reading
        await end(session)

    asyncio.run(run())


@pytest.mark.parametrize("more", [b"", frame(DATA, 0, 1, b"x")])
def test_a_frame_that_is_too_long_is_refused_by_its_head_alone(more):
    async def scenario(session):
        await session.ask(1, ends=False)
        head = frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES + 1))[:9]
        sent = await session.send(frame(DATA, 0, 1, b"x") + more + head[:4], head[4:])
        assert [(each.kind, each.code) for each in sent] == [(GOAWAY, peer.FRAME_SIZE_ERROR)]

    connected(scenario)


_BLOCKS = st.sampled_from([peer.literal(request()), peer.literal(request()[:3]), b"\x82", b""])
_PAYLOADS = st.one_of(
    st.binary(max_size=40), _BLOCKS, st.sampled_from([bytes(4), bytes(5), bytes(8)])
)
_FRAMES = st.builds(
    frame,
    st.integers(0, 11),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x2D]), st.integers(0, 255)),
    st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1, 2**31]),
    _PAYLOADS,
)
_NUMBERS = st.sampled_from([1, 3, 5, 7])
_ENDS = st.sampled_from([0, END_STREAM])
_GOOD = st.one_of(
    st.builds(lambda n, f: headers(n, request(), END_HEADERS | f), _NUMBERS, _ENDS),
    st.builds(lambda n, f, data: frame(DATA, f, n, data), _NUMBERS, _ENDS, st.binary(max_size=99)),
    st.builds(window_update, st.sampled_from([0, 1, 3]), st.integers(0, 2**31 - 1)),
    st.builds(lambda n: peer.settings((INITIAL_WINDOW, n)), st.integers(0, 2**31 - 1)),
    st.builds(rst_stream, _NUMBERS),
)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(_FRAMES, _GOOD, _GOOD, st.binary(max_size=30)), max_size=12),
    st.integers(1, 200),
    st.booleans(),
)
def test_whatever_comes_the_connection_lives_or_says_goodbye(pieces, cut, blocked):
    data = PREFACE + peer.settings((INITIAL_WINDOW, 20)) + b"".join(pieces)

    async def run() -> None:
        problems: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: problems.append(told))
        session = Session(answering)
        for start in range(0, len(data), cut):
            if session.wire.closing:
                break
            if blocked and start % 3 == 0:
                session.connection.pause_writing()
            session.connection.data_received(data[start : start + cut])
            await asyncio.sleep(0)
            session.connection.resume_writing()
        sent = await session.answers()
        assert session.alive or sent[-1].kind == GOAWAY
        assert not any(each.code == peer.INTERNAL_ERROR for each in sent if each.kind == GOAWAY)
        await end(session)
        assert not problems

    asyncio.run(run())
