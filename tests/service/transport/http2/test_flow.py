"""Flow control in both directions, back-pressure, and connections under random input."""

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
from tests.support.http2_peer import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADERS,
    INITIAL_WINDOW,
    INTERNAL_ERROR,
    MAX_FRAME,
    PADDED,
    PING,
    RST_STREAM,
    WINDOW_UPDATE,
    Peer,
    Request,
    connected,
    disconnect,
    headers,
    literal,
    parsed,
    raw_frame,
    request_fields,
    rst_stream,
    settings_frame,
    window_update,
)  # fmt: skip

HEAD = status_200() + encode([("content-type", "application/grpc")])
TRAILERS = encode([("grpc-status", "0")])
BODY = bytes(range(251)) * 400  # 100,400 bytes; a misplaced piece makes it differ


def data_of(sent, number=1):
    return b"".join(frame.payload for frame in sent if frame[0] == DATA and frame.stream == number)


# -------------------------------------------------------------------- sending


@pytest.mark.parametrize("whole", [True, False])
def test_a_window_granted_byte_by_byte_passes_every_byte_and_then_the_trailers(whole):
    async def scenario(peer):
        request = await peer.open(1)
        if whole:
            request.stream.respond(HEAD, (b"0123456789",), TRAILERS)
        else:
            request.stream.send_headers(HEAD)
            request.stream.send_data(b"0123", b"", memoryview(b"456789"))
            request.stream.end(TRAILERS)
        sent = await peer.receive()
        assert [frame.kind for frame in sent] == [HEADERS]
        for number in range(10):
            (byte, *rest) = await peer.send(window_update(1, 1))
            assert byte == (DATA, 0, 1, b"%d" % number)
            assert [frame.kind for frame in rest] == ([HEADERS] if number == 9 else [])
        assert rest[0].flags == END_HEADERS | END_STREAM

    connected(scenario, (INITIAL_WINDOW, 0))


@pytest.mark.parametrize("number", [0, 1])
def test_both_the_stream_and_the_connection_window_limit_data(number):
    async def scenario(peer):
        request = await peer.open(1)
        if number == 0:
            await peer.send(window_update(1, 10**6))
        else:
            await peer.send(window_update(0, 10**6))
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        sent = await peer.receive()
        assert len(data_of(sent)) == 65_535
        assert await peer.receive() == []
        more = await peer.send(window_update(number, 30_000))
        assert len(data_of(more)) == 30_000
        last = await peer.send(window_update(number, 30_000))
        assert data_of(sent) + data_of(more) + data_of(last) == BODY
        assert (last[-1].kind, last[-1].flags & END_STREAM) == (HEADERS, END_STREAM)

    connected(scenario)


def test_a_window_may_become_negative_and_grow_again():
    """RFC 9113 section 6.9.2: SETTINGS may narrow a window below what was already sent."""

    async def scenario(peer):
        request = await peer.open(1)
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        sent = data_of(await peer.receive())
        assert len(sent) == 65_535
        assert data_of(await peer.send(settings_frame((INITIAL_WINDOW, 100)))) == b""
        await peer.send(window_update(0, 10**6))
        assert data_of(await peer.send(window_update(1, 65_435))) == b""  # it is 0 now
        more = data_of(await peer.send(window_update(1, 1)))
        assert len(more) == 1
        last = await peer.send(settings_frame((INITIAL_WINDOW, 10**6)))
        assert sent + more + data_of(last) == BODY
        assert last[-1].flags & END_STREAM

    connected(scenario)


@pytest.mark.parametrize("window", [0, 1, 100, 64_000])
def test_a_window_that_shrinks_before_a_scheduled_flush_is_respected(window):
    async def scenario(peer):
        request = await peer.open(1)
        await peer.send(window_update(0, 10**6))
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        sent = data_of(await peer.receive())
        await peer.send(window_update(1, 1))
        # The stream lines up, and loses its window in the same event-loop iteration.
        peer.connection.data_received(window_update(1, 1000))
        peer.connection.data_received(settings_frame((INITIAL_WINDOW, window)))
        more = data_of(await peer.receive())
        assert more == b""
        last = data_of(await peer.send(settings_frame((INITIAL_WINDOW, 10**6))))
        assert len(sent) + 1 + len(last) == len(BODY)
        assert BODY.endswith(last)

    connected(scenario)


def test_a_small_response_is_sent_at_once_in_frames_of_the_peers_size():
    async def scenario(peer):
        await peer.send(window_update(0, 10**6))
        request = await peer.open(1)
        request.stream.respond(HEAD, (BODY[:7], BODY[7:40_000]), TRAILERS)
        sent = await peer.receive()
        assert [len(frame.payload) for frame in sent if frame.kind == DATA] == [16384, 16384, 7232]
        assert data_of(sent) == BODY[:40_000]
        assert sent[-1].flags == 0x5

    connected(scenario)


def test_streams_are_sent_round_robin_by_frame():
    async def scenario(peer):
        await peer.send(window_update(0, 10**6))
        for request in [await peer.open(number) for number in (1, 3, 5)]:
            request.stream.send_headers(HEAD)
            request.stream.send_data(BODY[:50_000])
            request.stream.end(TRAILERS)
        sent = await peer.receive()
        order = [frame.stream for frame in sent if frame.kind == DATA]
        assert order[:6] == [1, 3, 5, 1, 3, 5]
        assert all(data_of(sent, number) == BODY[:50_000] for number in (1, 3, 5))

    connected(scenario)


def test_a_small_response_takes_its_turn_among_queued_ones():
    async def scenario(peer):
        large, small = await peer.open(1), await peer.open(3)
        large.stream.respond(HEAD, (BODY,), TRAILERS)
        small.stream.respond(HEAD, (b"small",), TRAILERS)
        sent = await peer.receive()
        assert data_of(sent, 3) == b"small"
        ends = [
            frame.stream for frame in sent if frame.flags & END_STREAM and frame.kind == HEADERS
        ]
        assert ends == [3]

    connected(scenario)


def test_data_frames_respect_the_peers_max_frame_size():
    async def scenario(peer):
        await peer.send(window_update(0, 10**6))
        request = await peer.open(1)
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        sizes = [len(frame.payload) for frame in await peer.receive() if frame.kind == DATA]
        assert max(sizes) == 20_000
        assert sum(sizes) == len(BODY)

    connected(scenario, (MAX_FRAME, 20_000), (INITIAL_WINDOW, 10**6))


def test_a_writer_waits_while_too_much_is_queued_and_wakes_on_reset():
    async def scenario(peer):
        request = await peer.open(1)
        request.stream.send_headers(HEAD)
        request.stream.send_data(BODY, BODY)
        waiting = asyncio.create_task(request.stream.wait_writable())
        await peer.receive()
        assert not waiting.done()
        await peer.send(window_update(0, 100_000), window_update(1, 100_000))
        await asyncio.wait_for(waiting, 1)
        request.stream.send_data(BODY)
        again = asyncio.create_task(request.stream.wait_writable())
        await peer.receive()
        await peer.send(rst_stream(1))
        await asyncio.wait_for(again, 1)

    connected(scenario)


def test_on_sent_follows_the_last_frame_of_a_response():
    async def scenario(peer):
        request = await peer.open(1)
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        await peer.receive()
        assert not request.is_sent
        await peer.send(window_update(0, 10**6), window_update(1, 10**6))
        assert request.is_sent
        at_once = await peer.open(3)
        at_once.stream.respond(HEAD, (b"small",), TRAILERS)
        assert at_once.is_sent

    connected(scenario)


def test_nothing_is_written_while_the_transport_pauses_writing():
    async def scenario(peer):
        await peer.send(window_update(0, 10**7))
        request = await peer.open(1)
        peer.connection.pause_writing()
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        small = await peer.open(3)
        small.stream.respond(HEAD, (b"small",), TRAILERS)
        assert await peer.receive() == []
        peer.connection.resume_writing()
        sent = await peer.receive()
        assert (data_of(sent, 1), data_of(sent, 3)) == (BODY, b"small")

    connected(scenario, (INITIAL_WINDOW, 10**7))


# ------------------------------------------------------------------ receiving


def test_stream_window_is_granted_for_consumed_data_only():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        request.take = lambda _chunk: None
        chunk = bytes(MAX_FRAME_BYTES)
        for _ in range(4):
            assert await peer.send(raw_frame(DATA, 0, 1, chunk)) == []
        request.stream.consumed(2**20 - 1)
        (grant,) = await peer.receive()
        assert (grant.kind, grant.stream) == (WINDOW_UPDATE, 1)
        assert int.from_bytes(grant.payload, "big") == 2**20 - 1
        await peer.send(*[raw_frame(DATA, 0, 1, chunk)] * 3)
        sent = await peer.send(raw_frame(DATA, 0, 1, chunk))
        assert [(frame.kind, frame.code) for frame in sent] == [(RST_STREAM, FLOW_CONTROL_ERROR)]
        assert request.is_reset

    connected(scenario)


def test_padding_counts_against_the_window_and_is_granted_again():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        padded = b"\xff" + b"x" + bytes(255)
        granted = 0
        for _ in range(20_000):
            peer.connection.data_received(raw_frame(DATA, PADDED, 1, padded))
        for frame in await peer.receive():
            if frame.kind == WINDOW_UPDATE and frame.stream == 1:
                granted += int.from_bytes(frame.payload, "big")
        assert peer.alive
        assert 20_000 * 257 - granted < 2**20
        assert request.body == b"x" * 20_000

    connected(scenario)


def test_data_beyond_the_connection_window_is_a_connection_error():
    async def scenario(peer):
        window = peer.connection._reader._receive_window
        peer.connection._reader._replenish = lambda: None
        chunk = bytes(MAX_FRAME_BYTES)
        number, sent = 1, []
        while not any(frame.kind == GOAWAY for frame in sent):
            assert window >= 0
            await peer.open(number, ends=False)
            for _ in range(4):
                if peer.alive:
                    sent = await peer.send(raw_frame(DATA, 0, number, chunk))
                    window -= len(chunk)
            number += 2
        assert sent[-1].code == FLOW_CONTROL_ERROR

    connected(scenario)


def test_connection_window_is_granted_for_data_of_closed_streams():
    """Otherwise a few refused uploads would block all others for good."""

    async def scenario(peer):
        request = await peer.open(1, ends=False)
        request.stream.end(HEAD + TRAILERS)
        granted = 0
        for _ in range(200):
            for frame in await peer.send(raw_frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES))):
                if (frame.kind, frame.stream) == (WINDOW_UPDATE, 0):
                    granted += int.from_bytes(frame.payload, "big")
        assert peer.alive
        assert granted >= 40 * 2**20

    connected(scenario)


# ---------------------------------------------------------------- random input


def conversation() -> tuple[bytes, int]:
    """Bytes that h2 sends as a client for some calls, and the number of calls."""
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    data = client.data_to_send()
    for number in range(3):
        stream = client.get_next_available_stream_id()
        client.send_headers(stream, request_fields(f"/a/{number}", x_n="n" * number * 40))
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
    """Answers a request with its path and body."""
    request = Request(stream)
    stream.receiver = request

    def ended() -> None:
        body = f"{stream.head.path} ".encode() + request.body
        stream.respond(HEAD, (body,), TRAILERS)

    request.on_end = ended  # type: ignore[method-assign]


def responses_to(pieces: list[bytes]) -> dict[int, bytes]:
    async def run() -> dict[int, bytes]:
        peer = Peer(answering)
        for piece in pieces:
            peer.connection.data_received(piece)
        await peer.receive()
        client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        client.initiate_connection()
        for _ in range(CALLS):
            client.send_headers(
                client.get_next_available_stream_id(), request_fields(), end_stream=True
            )
        client.data_to_send()
        bodies: dict[int, bytes] = {}
        ends = set()
        for event in client.receive_data(strip_pings(bytes(peer.transport.sent))):
            if isinstance(event, DataReceived):
                bodies[event.stream_id] = bodies.get(event.stream_id, b"") + event.data
            elif isinstance(event, TrailersReceived):
                assert event.stream_id in bodies
            elif isinstance(event, StreamEnded):
                ends.add(event.stream_id)
        assert ends == set(bodies)
        await disconnect(peer)
        return bodies

    return asyncio.run(run())


def strip_pings(sent: bytes) -> bytes:
    """Removes the acknowledgements of pings that the client of `responses_to` has not sent."""
    return b"".join(raw_frame(*frame) for frame in parsed(sent) if frame.kind != PING)


WANTED = {1: b"/a/0 message 0", 3: b"/a/1 message 1", 5: b"/a/2 message 2"}


@settings(max_examples=60)
@given(st.lists(st.integers(1, len(CONVERSATION) - 1), max_size=30))
def test_responses_do_not_depend_on_how_the_input_is_split(cuts):
    edges = [0, *sorted(set(cuts)), len(CONVERSATION)]
    pieces = [CONVERSATION[a:b] for a, b in pairwise(edges)]
    assert responses_to(pieces) == WANTED


def test_responses_are_the_same_for_input_byte_by_byte():
    assert responses_to([bytes((byte,)) for byte in CONVERSATION]) == WANTED


_BODY_FRAMES = st.lists(
    st.tuples(st.sampled_from([1, 3]), st.sampled_from([0, 0, 0, PADDED]), st.binary(max_size=40)),
    max_size=20,
)


@settings(max_examples=100)
@given(_BODY_FRAMES, st.integers(1, 300))
async def test_bodies_are_reassembled_from_interleaved_and_split_frames(body_frames, cut):
    wanted = {1: b"", 3: b""}
    data = PREFACE + settings_frame() + headers(1, request_fields()) + headers(3, request_fields())
    for number, flags, payload in body_frames:
        wanted[number] += payload
        padding = b"\x02" if flags else b""
        data += raw_frame(DATA, flags, number, padding + payload + bytes(2 * len(padding)))
    data += raw_frame(DATA, END_STREAM, 1, b"end") + raw_frame(DATA, END_STREAM, 3)

    peer = Peer()
    for start in range(0, len(data), cut):
        peer.connection.data_received(data[start : start + cut])
    bodies = {number: request.body for number, request in peer.requests.items()}
    assert bodies == {1: wanted[1] + b"end", 3: wanted[3]}
    assert all(request.is_ended for request in peer.requests.values())
    await disconnect(peer)


def test_adjacent_data_frames_of_a_stream_are_received_as_one():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        chunks = []
        request.take = chunks.append
        part = raw_frame(DATA, 0, 1, b"0123456789")
        await peer.send(part * 3 + part[:12], part[12:] + raw_frame(DATA, END_STREAM, 1, b"x"))
        assert list(map(len, chunks)) == [30, 10, 1]
        assert request.is_ended

    connected(scenario)


async def test_reading_pauses_while_too_many_responses_are_unflushed():
    def requests(first: int, count: int) -> bytes:
        ids = range(first, first + 2 * count, 2)
        return b"".join(headers(id_, request_fields(), END_HEADERS | END_STREAM) for id_ in ids)

    peer = Peer(answering)
    await peer.shake_hands()
    for data in (requests(1, 500), requests(1001, 501)):
        assert peer.transport.reading
        peer.connection.data_received(data)
    assert not peer.transport.reading
    assert len([frame for frame in await peer.receive() if frame.kind == DATA]) == 1001
    assert peer.transport.reading
    # Nor while the peer does not read.
    peer.connection.pause_writing()
    peer.connection.data_received(requests(2003, 1001))
    await peer.receive()
    assert not peer.transport.reading
    peer.connection.resume_writing()
    assert peer.transport.reading
    await disconnect(peer)


@pytest.mark.parametrize("more", [b"", raw_frame(DATA, 0, 1, b"x")])
def test_a_frame_that_is_too_long_is_refused_by_its_header_alone(more):
    async def scenario(peer):
        await peer.open(1, ends=False)
        head = raw_frame(DATA, 0, 1, bytes(MAX_FRAME_BYTES + 1))[:9]
        sent = await peer.send(raw_frame(DATA, 0, 1, b"x") + more + head[:4], head[4:])
        assert [(frame.kind, frame.code) for frame in sent] == [(GOAWAY, FRAME_SIZE_ERROR)]

    connected(scenario)


_BLOCKS = st.sampled_from([literal(request_fields()), literal(request_fields()[:3]), b"\x82", b""])
_PAYLOADS = st.one_of(
    st.binary(max_size=40), _BLOCKS, st.sampled_from([bytes(4), bytes(5), bytes(8)])
)
_FRAMES = st.builds(
    raw_frame,
    st.integers(0, 11),
    st.one_of(st.sampled_from([0, 1, 4, 5, 8, 0x2D]), st.integers(0, 255)),
    st.sampled_from([0, 1, 2, 3, 5, 7, 2**31 - 1, 2**31]),
    _PAYLOADS,
)
_NUMBERS = st.sampled_from([1, 3, 5, 7])
_ENDS = st.sampled_from([0, END_STREAM])
_GOOD = st.one_of(
    st.builds(lambda n, f: headers(n, request_fields(), END_HEADERS | f), _NUMBERS, _ENDS),
    st.builds(
        lambda n, f, data: raw_frame(DATA, f, n, data), _NUMBERS, _ENDS, st.binary(max_size=99)
    ),
    st.builds(window_update, st.sampled_from([0, 1, 3]), st.integers(0, 2**31 - 1)),
    st.builds(lambda n: settings_frame((INITIAL_WINDOW, n)), st.integers(0, 2**31 - 1)),
    st.builds(rst_stream, _NUMBERS),
)


@settings(max_examples=300)
@given(
    st.lists(st.one_of(_FRAMES, _GOOD, _GOOD, st.binary(max_size=30)), max_size=12),
    st.integers(1, 200),
    st.booleans(),
)
async def test_random_frames_leave_the_connection_open_or_end_in_goaway(pieces, cut, blocked):
    data = PREFACE + settings_frame((INITIAL_WINDOW, 20)) + b"".join(pieces)

    problems: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
    peer = Peer(answering)
    for start in range(0, len(data), cut):
        if peer.transport.closing:
            break
        if blocked and start % 3 == 0:
            peer.connection.pause_writing()
        peer.connection.data_received(data[start : start + cut])
        await asyncio.sleep(0)
        peer.connection.resume_writing()
    sent = await peer.receive()
    assert peer.alive or sent[-1].kind == GOAWAY
    assert not any(frame.code == INTERNAL_ERROR for frame in sent if frame.kind == GOAWAY)
    await disconnect(peer)
    assert not problems
