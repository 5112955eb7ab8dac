"""Connections: preface, requests, errors, floods, and graceful shutdown."""

import asyncio
import time

import hpack
import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import (
    DataReceived,
    RemoteSettingsChanged,
    ResponseReceived,
    StreamEnded,
    TrailersReceived,
)

from service.transport.http2 import connection as module
from service.transport.http2.frames import PREFACE, ErrorCode
from service.transport.http2.headers import encode, status_200
from tests.support.http2_peer import (
    ACK,
    CANCEL,
    COMPRESSION_ERROR,
    CONTINUATION,
    DATA,
    ENABLE_PUSH,
    END_HEADERS,
    END_STREAM,
    ENHANCE_YOUR_CALM,
    FLOW_CONTROL_ERROR,
    FRAME_SIZE_ERROR,
    GOAWAY,
    HEADER_TABLE_SIZE,
    HEADERS,
    INITIAL_WINDOW,
    INTERNAL_ERROR,
    MAX_FRAME,
    PADDED,
    PING,
    PRIORITISED,
    PRIORITY,
    PROTOCOL_ERROR,
    PUSH_PROMISE,
    REFUSED_STREAM,
    RST_STREAM,
    SETTINGS,
    STREAM_CLOSED,
    WINDOW_UPDATE,
    Peer,
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
from tests.support.waiting import wait_until_async

HEAD = status_200() + encode([("content-type", "application/grpc")])
TRAILERS = encode([("grpc-status", "0")])


def ended_by(sent, code):
    """Whether the last frame is a GOAWAY with this error."""
    last = sent[-1]
    return (last.kind, last.code if last.kind == GOAWAY else None) == (GOAWAY, code)


# --------------------------------------------------------------------- preface


async def test_the_server_preface_is_settings_and_a_window_then_the_acknowledgement():
    peer = Peer()
    assert await peer.receive() == []
    sent = await peer.shake_hands((ENABLE_PUSH, 0))
    assert [frame.kind for frame in sent] == [SETTINGS, WINDOW_UPDATE, SETTINGS]
    assert [frame.flags for frame in sent] == [0, 0, ACK]
    assert peer.alive
    await disconnect(peer)


async def test_h2_completes_a_handshake_and_a_call():
    peer = Peer()
    client = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    client.send_headers(1, request_fields(), end_stream=False)
    client.send_data(1, b"question", end_stream=True)
    peer.connection.data_received(client.data_to_send())
    for _ in range(4):
        await asyncio.sleep(0)
    request = peer.requests[1]
    assert (request.body, request.is_ended) == (b"question", True)
    request.stream.respond(HEAD, (b"answer",), TRAILERS)
    await asyncio.sleep(0)
    events = client.receive_data(bytes(peer.transport.sent))
    kinds = [type(event) for event in events]
    assert kinds.index(RemoteSettingsChanged) < kinds.index(ResponseReceived)
    by_type = {type(event): event for event in events}
    assert by_type[ResponseReceived].headers[0] == (":status", "200")
    assert by_type[DataReceived].data == b"answer"
    assert by_type[TrailersReceived].headers == [("grpc-status", "0")]
    assert StreamEnded in by_type
    await disconnect(peer)


@pytest.mark.parametrize("cut", [1, 5, len(PREFACE) - 1, len(PREFACE), len(PREFACE) + 4])
async def test_the_client_preface_may_arrive_in_pieces(cut):
    peer = Peer()
    preface = PREFACE + settings_frame()
    await peer.send(preface[:cut])
    sent = await peer.send(preface[cut:])
    assert peer.alive
    assert sent[-1][:2] == (SETTINGS, ACK)
    await disconnect(peer)


@pytest.mark.parametrize("first", [b"\0" * 30, b"PRI * HTTP/2.1\r\n", b"X", b"\x16\x03\x01\x02"])
async def test_anything_but_the_client_preface_is_a_protocol_error_at_once(first):
    peer = Peer()
    sent = await peer.send(first)
    assert [frame.kind for frame in sent] == [SETTINGS, WINDOW_UPDATE, GOAWAY]
    assert ended_by(sent, PROTOCOL_ERROR)
    await disconnect(peer)


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"POST /a/b HTTP/1.0\r\n\r\n", b"PRI * HTTP/1.1\r\n"],
)
async def test_http_1_is_answered_by_status_505(first):
    peer = Peer()
    peer.connection.data_received(first)
    await asyncio.sleep(0)
    assert bytes(peer.transport.sent).startswith(b"HTTP/1.1 505 ")
    assert peer.transport.closing
    await disconnect(peer)


async def test_a_first_frame_other_than_settings_is_a_protocol_error():
    peer = Peer()
    assert ended_by(await peer.send(PREFACE + raw_frame(PING, 0, 0, bytes(8))), PROTOCOL_ERROR)
    await disconnect(peer)


@pytest.mark.parametrize("begun", [b"", PREFACE[:10], PREFACE])
async def test_an_incomplete_client_preface_times_out(monkeypatch, begun):
    monkeypatch.setattr(module, "_PREFACE_SECONDS", 0.01)

    peer = Peer()
    if begun:
        await peer.send(begun)
    await wait_until_async(lambda: peer.lost_connections)
    assert peer.transport.aborted
    await disconnect(peer)


# ---------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (raw_frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (raw_frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        (raw_frame(DATA, PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
        (headers(0, request_fields()), PROTOCOL_ERROR),
        (headers(2, request_fields()), PROTOCOL_ERROR),
        (raw_frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
        (raw_frame(HEADERS, END_HEADERS | PADDED, 1), FRAME_SIZE_ERROR),
        (raw_frame(HEADERS, END_HEADERS | PRIORITISED, 1, b"abc"), FRAME_SIZE_ERROR),
        (raw_frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
        (raw_frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
        (raw_frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
        (rst_stream(0), PROTOCOL_ERROR),
        (rst_stream(1), PROTOCOL_ERROR),
        (raw_frame(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
        (raw_frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
        (raw_frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
        (raw_frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
        (settings_frame((ENABLE_PUSH, 2)), PROTOCOL_ERROR),
        (settings_frame((INITIAL_WINDOW, 2**31)), FLOW_CONTROL_ERROR),
        (settings_frame((MAX_FRAME, 2**14 - 1)), PROTOCOL_ERROR),
        (settings_frame((MAX_FRAME, 2**24)), PROTOCOL_ERROR),
        (raw_frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL_ERROR),
        (raw_frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
        (raw_frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
        (raw_frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
        (raw_frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
        (raw_frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
        (window_update(0, 0), PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), FLOW_CONTROL_ERROR),
        (window_update(1, 1), PROTOCOL_ERROR),
        (window_update(1, 0), PROTOCOL_ERROR),
        (window_update(2, 1), PROTOCOL_ERROR),
        (raw_frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
        ((256 * 1024 + 1).to_bytes(3, "big") + bytes(6), FRAME_SIZE_ERROR),
        (headers(1, request_fields(), 0) + raw_frame(DATA, 0, 1), PROTOCOL_ERROR),
        (headers(1, request_fields(), 0) + raw_frame(PRIORITY, 0, 1, bytes(5)), PROTOCOL_ERROR),
        (headers(1, request_fields(), 0) + raw_frame(0xF0, 0, 1), PROTOCOL_ERROR),
        (headers(1, request_fields(), 0) + raw_frame(CONTINUATION, END_HEADERS, 3), PROTOCOL_ERROR),
        (headers(1, request_fields(), 0) + headers(1, request_fields()), PROTOCOL_ERROR),
        (headers(5, request_fields()) + headers(3, request_fields()), STREAM_CLOSED),
        (headers(5, request_fields()) + raw_frame(DATA, 0, 4), PROTOCOL_ERROR),
    ],
    ids=str,
)
def test_a_connection_error_closes_the_connection_by_goaway(data, code):
    async def scenario(peer):
        assert ended_by(await peer.send(data), code)

    connected(scenario)


_OPEN = headers(1, request_fields())
_HALF_CLOSED = headers(1, request_fields(), END_HEADERS | END_STREAM)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (headers(1, request_fields()[:3]), None),
        (headers(1, [*request_fields(), ("X", "1")]), PROTOCOL_ERROR),
        (headers(1, [*request_fields(), ("connection", "close")]), PROTOCOL_ERROR),
        (_OPEN + headers(1, [("a", "1")]), PROTOCOL_ERROR),
        (_OPEN + headers(1, [(":path", "/")], END_HEADERS | END_STREAM), PROTOCOL_ERROR),
        (_OPEN + headers(1, [("A", "1")], END_HEADERS | END_STREAM), PROTOCOL_ERROR),
        (_OPEN + window_update(1, 0), PROTOCOL_ERROR),
        (_OPEN + window_update(1, 2**31 - 1), FLOW_CONTROL_ERROR),
        (_OPEN + raw_frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
        (_HALF_CLOSED + raw_frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
        (_HALF_CLOSED + headers(1, [("a", "1")], END_HEADERS | END_STREAM), STREAM_CLOSED),
        (_HALF_CLOSED + raw_frame(PRIORITY, 0, 3, bytes(5)), None),
        (_HALF_CLOSED + window_update(1, 1), None),
        (headers(1, request_fields(content_length="3"), 0x5), PROTOCOL_ERROR),
        (
            headers(1, request_fields(content_length="3")) + raw_frame(DATA, 1, 1, b"ab"),
            PROTOCOL_ERROR,
        ),
        (
            headers(1, request_fields(content_length="3")) + raw_frame(DATA, 0, 1, b"abcd"),
            PROTOCOL_ERROR,
        ),
        (headers(1, request_fields(content_length="3")) + raw_frame(DATA, 0, 1, b"abc"), None),
        (
            headers(1, request_fields(content_length="3"))
            + raw_frame(DATA, 0, 1, b"ab")
            + headers(1, [("a", "1")], END_HEADERS | END_STREAM),
            PROTOCOL_ERROR,
        ),
    ],
    ids=str,
)
def test_a_stream_error_resets_that_stream_alone(data, code):
    async def scenario(peer):
        sent = await peer.send(data)
        ends = [
            (frame.kind, frame.stream, frame.code) for frame in sent if frame.kind == RST_STREAM
        ]
        assert ends == ([] if code is None else [(RST_STREAM, 1, code)])
        assert all(request.is_reset for request in peer.requests.values()) or code is None
        await peer.open(7)
        assert peer.requests[7].is_ended
        assert peer.alive

    connected(scenario)


def test_frames_in_flight_for_a_stream_that_we_reset_are_ignored():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        request.stream.reset(ErrorCode.CANCEL)
        assert request.is_reset
        assert [frame.code for frame in await peer.receive()] == [CANCEL]
        trailers = headers(1, [("a", "1")], END_HEADERS | END_STREAM)
        late = (raw_frame(DATA, 0, 1, b"x" * 100), window_update(1, 5), trailers, rst_stream(1))
        assert await peer.send(*late) == []
        assert (request.body, request.is_ended, peer.alive) == (b"", False, True)

    connected(scenario)


def test_data_on_a_closed_stream_is_a_connection_error():
    async def scenario(peer):
        request = await peer.open(1)
        request.stream.respond(HEAD, (b"x",), TRAILERS)
        await peer.receive()
        assert ended_by(await peer.send(raw_frame(DATA, 0, 1, b"x")), STREAM_CLOSED)

    connected(scenario)


async def test_an_unexpected_exception_closes_its_connection_as_an_internal_error(caplog):
    def broken(_stream):
        raise RuntimeError("a bug")

    peer = Peer(broken)
    await peer.shake_hands()
    assert ended_by(await peer.send(_OPEN), INTERNAL_ERROR)
    assert "a bug" in caplog.text
    await disconnect(peer)


# -------------------------------------------------------------- header blocks


def test_a_header_block_may_be_fragmented_padded_and_prioritized():
    async def scenario(peer):
        block = literal(request_fields())
        first = b"\x03" + bytes(5) + block[:7] + bytes(3)
        flags = PADDED | PRIORITISED | END_STREAM
        await peer.send(
            raw_frame(HEADERS, flags, 1, first),
            raw_frame(CONTINUATION, 0, 1, block[7:9]),
            raw_frame(CONTINUATION, 0, 1),
            raw_frame(CONTINUATION, END_HEADERS, 1, block[9:]),
        )
        assert peer.requests[1].stream.head.path == "/a/b"
        assert peer.requests[1].is_ended

    connected(scenario)


def test_trailers_may_be_fragmented_and_end_the_request():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        block = literal([("x-checksum", "1")])
        await peer.send(
            raw_frame(DATA, 0, 1, b"body"), raw_frame(HEADERS, END_STREAM, 1, block[:3])
        )
        assert not request.is_ended
        await peer.send(raw_frame(CONTINUATION, END_HEADERS, 1, block[3:]))
        assert (request.body, request.is_ended) == (b"body", True)

    connected(scenario)


@pytest.mark.parametrize(
    "pieces",
    [
        [raw_frame(HEADERS, 0, 1, b"a" * 40_000)],
        [raw_frame(HEADERS, END_HEADERS, 1, b"\x20" * 200_000)],
        [raw_frame(HEADERS, 0, 1), *[raw_frame(CONTINUATION, 0, 1, b"a" * 16_384)] * 3],
        [raw_frame(HEADERS, 0, 1), *[raw_frame(CONTINUATION, 0, 1)] * 40],
    ],
    ids=["long", "resizes", "pieces", "empty pieces"],
)
def test_a_header_block_beyond_the_limits_is_a_connection_error(pieces):
    async def scenario(peer):
        started = time.process_time()
        assert ended_by(await peer.send(*pieces), ENHANCE_YOUR_CALM)
        assert time.process_time() - started < 0.1

    connected(scenario)


def test_a_header_list_that_is_too_large_is_flagged_and_the_connection_lives():
    async def scenario(peer):
        await peer.send(headers(1, request_fields(x="a" * 20_000)))
        assert peer.requests[1].stream.head.too_large
        assert not (await peer.open(3)).stream.head.too_large

    connected(scenario)


def test_a_header_table_size_of_zero_is_acknowledged_by_a_size_update():
    """Without the size update, the decoders of nghttp2 and hpack refuse the next block."""

    async def scenario(peer):
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 0
        for number, whole in ((1, True), (3, False)):
            request = await peer.open(number)
            if whole:
                request.stream.respond(HEAD, (b"x",), TRAILERS)
            else:
                request.stream.end(HEAD + TRAILERS)
            blocks = [frame.payload for frame in await peer.receive() if frame.kind == HEADERS]
            assert decoder.decode(blocks[0])[0] == (":status", "200")
            assert decoder.decode(blocks[-1])[-1] == ("grpc-status", "0")
            decoder.header_table_size = 0

    connected(scenario, (HEADER_TABLE_SIZE, 0))


def test_a_block_larger_than_a_frame_is_sent_with_continuation():
    async def scenario(peer):
        request = await peer.open(1)
        fields = [("grpc-message", "a" * 40_000)]
        request.stream.end(status_200() + encode(fields))
        sent = await peer.receive()
        assert [frame.kind for frame in sent] == [HEADERS, CONTINUATION, CONTINUATION]
        assert [frame.flags for frame in sent] == [END_STREAM, 0, END_HEADERS]
        block = b"".join(frame.payload for frame in sent)
        assert hpack.Decoder(2**20).decode(block) == [(":status", "200"), *fields]

    connected(scenario)


# ----------------------------------------------------------------- requests


def test_streams_beyond_the_limit_are_refused_and_open_ones_live():
    async def scenario(peer):
        for number in (1, 3):
            await peer.open(number)
        sent = await peer.send(headers(5, request_fields()))
        assert [(frame.kind, frame.stream, frame.code) for frame in sent] == [
            (RST_STREAM, 5, REFUSED_STREAM)
        ]
        peer.requests[1].stream.respond(HEAD, (b"x",), TRAILERS)
        await peer.receive()
        await peer.open(7)

    connected(scenario, max_streams=2)


def test_a_response_before_the_end_of_the_request_resets_with_no_error():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        request.stream.end(HEAD + TRAILERS)
        sent = await peer.receive()
        assert [(frame.kind, frame.flags & END_STREAM) for frame in sent] == [
            (HEADERS, END_STREAM), (RST_STREAM, 0)
        ]  # fmt: skip
        assert sent[1].code == 0
        assert await peer.send(raw_frame(DATA, END_STREAM, 1, b"late")) == []
        assert request.body == b""

    connected(scenario)


@pytest.mark.parametrize("ends_by", ["headers", "data", "trailers"])
async def test_a_response_at_the_end_of_the_request_is_not_followed_by_rst_stream(ends_by):
    class Refusing:
        def __init__(self, stream):
            self.stream = stream

        def on_data(self, _chunk):
            self.stream.end(HEAD + TRAILERS)

        def on_end(self):
            self.stream.end(HEAD + TRAILERS)

        def on_sent(self):
            pass

        def on_reset(self):
            raise AssertionError

    def accept(stream):
        stream.receiver = Refusing(stream)
        if ends_by == "headers":
            stream.end(HEAD + TRAILERS)

    peer = Peer(accept)
    await peer.shake_hands()
    both = END_HEADERS | END_STREAM
    if ends_by == "headers":
        sent = await peer.send(headers(1, request_fields(content_length="0"), both))
    elif ends_by == "data":
        sent = await peer.send(_OPEN, raw_frame(DATA, END_STREAM, 1, b"x"))
    else:
        sent = await peer.send(_OPEN, headers(1, [("a", "1")], both))
    assert [frame.kind for frame in sent] == [HEADERS]
    await disconnect(peer)


def test_a_stream_reset_by_the_peer_sends_nothing_more():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        assert await peer.send(rst_stream(1)) == []
        assert request.is_reset
        request.stream.respond(HEAD, (b"x",), TRAILERS)
        request.stream.send_headers(HEAD)
        request.stream.send_data(b"x")
        request.stream.end(TRAILERS)
        request.stream.consumed(2**20)
        request.stream.reset(ErrorCode.CANCEL)
        assert await peer.receive() == []
        await asyncio.wait_for(request.stream.wait_writable(), 1)

    connected(scenario)


def test_pings_are_acknowledged_and_goaway_lets_requests_finish():
    async def scenario(peer):
        sent = await peer.send(
            raw_frame(PING, 0, 0, b"12345678"), raw_frame(PING, ACK, 0, bytes(8))
        )
        assert sent == [(PING, ACK, 0, b"12345678")]
        request = await peer.open(1)
        assert await peer.send(raw_frame(GOAWAY, 0, 0, bytes(8) + b"why")) == []
        request.stream.respond(HEAD, (b"x",), TRAILERS)
        assert [frame.kind for frame in await peer.receive()] == [HEADERS, DATA, HEADERS]

    connected(scenario)


def test_unknown_frame_types_and_settings_are_ignored():
    async def scenario(peer):
        sent = await peer.send(
            raw_frame(0x10, 0xFF, 77, b"x" * 1000),
            raw_frame(0xFF),
            settings_frame((0xFFFF, 2**32 - 1)),
        )
        assert sent == [(SETTINGS, ACK, 0, b"")]
        assert peer.alive

    connected(scenario)


# ------------------------------------------------------------------- shutdown


def test_graceful_shutdown_warns_finishes_open_streams_and_closes():
    async def scenario(peer):
        first = await peer.open(1)
        peer.connection.shut_down()
        warning, ping = await peer.receive()
        assert (warning.kind, int.from_bytes(warning.payload[:4], "big"), warning.code) == (
            GOAWAY, 2**31 - 1, 0
        )  # fmt: skip
        assert ping.kind == PING
        # Requests in flight are still accepted,
        second = await peer.open(3)
        (last,) = await peer.send(raw_frame(PING, ACK, 0, ping.payload))
        assert (last.kind, int.from_bytes(last.payload[:4], "big"), last.code) == (GOAWAY, 3, 0)
        # and later ones are refused.
        sent = await peer.send(headers(5, request_fields()))
        assert [frame.code for frame in sent] == [REFUSED_STREAM]
        for request in (first, second):
            assert peer.alive
            request.stream.respond(HEAD, (b"x",), TRAILERS)
            await peer.receive()
        assert peer.transport.closing
        assert not peer.transport.aborted

    connected(scenario)


def test_graceful_shutdown_goes_on_without_a_ping_acknowledgement(monkeypatch):
    monkeypatch.setattr(module, "_GOAWAY_SECONDS", 0.01)

    async def scenario(peer):
        peer.connection.shut_down()
        await wait_until_async(lambda: peer.lost_connections)
        assert [frame.kind for frame in await peer.receive()] == [GOAWAY, PING, GOAWAY]

    connected(scenario)


@pytest.mark.parametrize("shakes_hands", [False, True])
async def test_graceful_shutdown_may_begin_before_the_client_preface(monkeypatch, shakes_hands):
    monkeypatch.setattr(module, "_GOAWAY_SECONDS", 0.01)

    peer = Peer()
    peer.connection.shut_down()
    sent = await peer.receive()
    if shakes_hands:
        sent += await peer.shake_hands()
    await wait_until_async(lambda: peer.lost_connections)
    sent += await peer.receive()
    assert sent[0].kind == SETTINGS
    assert [frame.kind for frame in sent].count(GOAWAY) == 2
    await disconnect(peer)


def test_a_lost_connection_resets_every_stream_and_wakes_writers():
    async def scenario(peer):
        requests = [await peer.open(number) for number in (1, 3)]
        requests[0].stream.send_headers(HEAD)
        requests[0].stream.send_data(b"x" * 200_000)
        waiting = asyncio.create_task(requests[0].stream.wait_writable())
        await peer.receive()
        peer.transport.closing = True
        peer.connection.connection_lost(None)
        await asyncio.wait_for(waiting, 1)
        assert all(request.is_reset for request in requests)
        peer.connection.data_received(_OPEN)  # asyncio would not, but its TLS layer may
        assert 5 not in peer.requests

    connected(scenario)


def test_close_sends_goaway_and_resets_open_streams():
    async def scenario(peer):
        request = await peer.open(1)
        peer.connection.close()
        sent = await peer.receive()
        assert ended_by(sent, 0)
        assert request.is_reset

    connected(scenario)


def test_close_half_closes_and_reads_until_the_peer_closes(monkeypatch):
    monkeypatch.setattr(module, "_ERROR_SECONDS", 0.1)

    async def scenario(peer):
        peer.transport.half_closes = True
        peer.connection.close()
        assert ended_by(await peer.receive(), 0)
        assert peer.transport.eof
        assert peer.alive
        assert not await peer.send(_OPEN, raw_frame(PING, 0, 0, bytes(8)))
        assert 1 not in peer.requests
        await wait_until_async(lambda: peer.lost_connections)  # after _ERROR_SECONDS
        assert peer.transport.aborted

    connected(scenario)


def test_a_transport_that_is_already_closing_is_not_half_closed():
    async def scenario(peer):
        peer.transport.half_closes = peer.transport.closing = True
        peer.connection.close()
        peer.connection.connection_lost(None)

    connected(scenario)


# ------------------------------------------------------------------- floods


def flood(what, *, before=b"", count=5000):
    """Number of frames that are accepted before the connection is closed; None if all are."""
    accepted = []

    async def scenario(peer):
        if before:
            await peer.send(before)
        data = [what(number) for number in range(count)]
        started = time.process_time()
        for number, piece in enumerate(data):
            peer.connection.data_received(piece)
            if peer.transport.closing:
                accepted.append(number)
                break
        assert time.process_time() - started < 2
        sent = await peer.receive()
        if accepted:
            assert ended_by(sent, ENHANCE_YOUR_CALM)

    connected(scenario)
    return accepted[0] if accepted else None


@pytest.mark.parametrize(
    ("what", "before"),
    [
        (lambda _: raw_frame(PING, 0, 0, bytes(8)), b""),
        (lambda _: raw_frame(PING, ACK, 0, bytes(8)), b""),
        (lambda _: settings_frame(), b""),
        (lambda _: raw_frame(SETTINGS, ACK), b""),
        (lambda n: settings_frame((INITIAL_WINDOW, n % 2)), b""),
        (lambda _: raw_frame(DATA, 0, 1), _OPEN),
        (lambda _: raw_frame(DATA, PADDED, 1, b"\x03" + bytes(3)), _OPEN),
        (lambda _: raw_frame(DATA, 0, 1), headers(1, request_fields()[:2])),
        (lambda _: headers(1, [], 0x5), headers(1, request_fields()[:2])),
        (lambda _: raw_frame(PRIORITY, 0, 1, bytes(5)), b""),
        (lambda _: raw_frame(GOAWAY, 0, 0, bytes(8)), b""),
        (lambda _: rst_stream(1), _OPEN),
        (lambda _: window_update(0, 1), b""),
        (lambda _: window_update(1, 1), _OPEN),
        (lambda _: raw_frame(0x77, 0, 0), b""),
        # Rapid reset: by the client, and by errors that make the server reset streams.
        (lambda n: headers(2 * n + 1, request_fields(), 0x5) + rst_stream(2 * n + 1), b""),
        (lambda n: headers(2 * n + 1, request_fields()) + window_update(2 * n + 1, 0), b""),
        (lambda n: headers(2 * n + 1, request_fields()[:2]), b""),
        (lambda n: headers(2 * n + 1, request_fields(content_length="1"), 0x5), b""),
    ],
)  # fmt: skip
def test_a_flood_of_cheap_frames_closes_the_connection(what, before):
    assert 900 <= flood(what, before=before) <= 1100


def test_a_flood_of_refused_streams_closes_the_connection():
    assert flood(lambda n: headers(2 * n + 1, request_fields()), count=3000) <= 2100


def test_pings_and_window_updates_in_step_with_responses_are_no_flood():
    """grpc-go sends a PING and a WINDOW_UPDATE for each DATA frame that it receives."""

    async def scenario(peer):
        request = await peer.open(1)
        request.stream.send_headers(HEAD)
        for _ in range(3000):
            request.stream.send_data(b"x" * 10)
            ping = raw_frame(PING, 0, 0, bytes(8))
            await peer.send(window_update(0, 10), window_update(1, 10), ping)
        for number in range(3, 4000, 2):
            peer.connection.data_received(
                headers(number, request_fields(), 0x5) + raw_frame(PING, 0, 0, bytes(8))
            )
            peer.requests.pop(number).stream.respond(HEAD, (b"x",), TRAILERS)
            peer.connection.data_received(window_update(0, 1) + raw_frame(PING, 0, 0, bytes(8)))
        await peer.receive()
        assert peer.alive

    connected(scenario)


def test_an_initial_window_set_many_times_in_a_frame_is_applied_once():
    async def scenario(peer):
        for number in range(1, 2000, 2):
            request = await peer.open(number)
            request.stream.send_headers(HEAD)
            request.stream.send_data(b"x" * 10)
        started = time.process_time()
        pairs = [(INITIAL_WINDOW, number % 2) for number in range(40_000)]
        await peer.send(settings_frame(*pairs))
        assert time.process_time() - started < 1
        assert peer.alive

    connected(scenario, (INITIAL_WINDOW, 0))


async def test_reading_pauses_while_the_peer_does_not_read_responses():
    """Even refusals take memory while they wait to be sent."""

    def refuse(stream):
        stream.end(HEAD + encode([("grpc-message", "a" * 500)]))

    peer = Peer(refuse)
    await peer.shake_hands()
    await peer.receive()
    peer.connection.pause_writing()
    before = len(peer.transport.sent)
    number = 1
    while peer.transport.reading and number < 20_000:
        peer.connection.data_received(headers(number, request_fields(), 0x5))
        number += 2
        if number % 99 == 0:
            await peer.receive()
    assert number < 5000
    assert len(peer.transport.sent) == before
    assert peer.alive
    peer.connection.resume_writing()
    assert peer.transport.reading
    assert len(await peer.receive()) == (number - 1) // 2
    await disconnect(peer)


def test_parsed_inverts_raw_frame():
    assert parsed(raw_frame(PING, 1, 3, b"x") + raw_frame(DATA)) == [
        (PING, 1, 3, b"x"),
        (DATA, 0, 0, b""),
    ]
