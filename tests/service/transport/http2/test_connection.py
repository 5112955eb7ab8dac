"""A connection's life: greeting, requests, errors, floods, and its end."""

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
    Session,
    connected,
    end,
    frame,
    headers,
    literal,
    parsed,
    request,
    rst_stream,
    settings,
    window_update,
)  # fmt: skip

HEAD = status_200() + encode([("content-type", "application/grpc")])
TRAILERS = encode([("grpc-status", "0")])


def ended_by(answers, code):
    """Whether the connection was ended by GOAWAY with this error, and by nothing else."""
    last = answers[-1]
    return (last.kind, last.code if last.kind == GOAWAY else None) == (GOAWAY, code)


# -------------------------------------------------------------------- greeting


def test_the_first_frames_are_settings_a_window_and_the_acknowledgement():
    async def scenario():
        session = Session()
        assert await session.answers() == []
        sent = await session.greet((ENABLE_PUSH, 0))
        assert [each.kind for each in sent] == [SETTINGS, WINDOW_UPDATE, SETTINGS]
        assert [each.flags for each in sent] == [0, 0, ACK]
        assert session.alive
        await end(session)

    asyncio.run(scenario())


def test_another_library_agrees_with_the_greeting_and_a_whole_call():
    async def scenario():
        session = Session()
        peer = H2Connection(H2Configuration(client_side=True, header_encoding="utf-8"))
        peer.initiate_connection()
        peer.send_headers(1, request(), end_stream=False)
        peer.send_data(1, b"question", end_stream=True)
        session.connection.data_received(peer.data_to_send())
        for _ in range(4):
            await asyncio.sleep(0)
        asked = session.asked[1]
        assert (asked.body, asked.is_ended) == (b"question", True)
        asked.stream.respond(HEAD, (b"answer",), TRAILERS)
        await asyncio.sleep(0)
        events = peer.receive_data(bytes(session.wire.sent))
        kinds = [type(event) for event in events]
        assert kinds.index(RemoteSettingsChanged) < kinds.index(ResponseReceived)
        told = {type(event): event for event in events}
        assert told[ResponseReceived].headers[0] == (":status", "200")
        assert told[DataReceived].data == b"answer"
        assert told[TrailersReceived].headers == [("grpc-status", "0")]
        assert StreamEnded in told
        await end(session)

    asyncio.run(scenario())


@pytest.mark.parametrize("cut", [1, 5, len(PREFACE) - 1, len(PREFACE), len(PREFACE) + 4])
def test_the_greeting_may_come_in_pieces(cut):
    async def scenario():
        session = Session()
        hello = PREFACE + settings()
        await session.send(hello[:cut])
        sent = await session.send(hello[cut:])
        assert session.alive
        assert sent[-1][:2] == (SETTINGS, ACK)
        await end(session)

    asyncio.run(scenario())


@pytest.mark.parametrize("first", [b"\0" * 30, b"PRI * HTTP/2.1\r\n", b"X", b"\x16\x03\x01\x02"])
def test_who_does_not_say_hello_is_sent_away_at_once(first):
    async def scenario():
        session = Session()
        sent = await session.send(first)
        assert [each.kind for each in sent] == [SETTINGS, WINDOW_UPDATE, GOAWAY]
        assert ended_by(sent, PROTOCOL_ERROR)
        await end(session)

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "first",
    [b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", b"POST /a/b HTTP/1.0\r\n\r\n", b"PRI * HTTP/1.1\r\n"],
)
def test_http_1_is_answered_in_its_own_words(first):
    async def scenario():
        session = Session()
        session.connection.data_received(first)
        await asyncio.sleep(0)
        assert bytes(session.wire.sent).startswith(b"HTTP/1.1 505 ")
        assert session.wire.closing
        await end(session)

    asyncio.run(scenario())


def test_a_first_frame_that_is_not_settings_is_an_error():
    async def scenario():
        session = Session()
        assert ended_by(await session.send(PREFACE + frame(PING, 0, 0, bytes(8))), PROTOCOL_ERROR)
        await end(session)

    asyncio.run(scenario())


@pytest.mark.parametrize("said", [b"", PREFACE[:10], PREFACE])
def test_who_says_nothing_is_hung_up_on(monkeypatch, said):
    monkeypatch.setattr(module, "_PREFACE_SECONDS", 0.01)

    async def scenario():
        session = Session()
        if said:
            await session.send(said)
        await asyncio.sleep(0.05)
        assert session.wire.aborted
        await end(session)

    asyncio.run(scenario())


# -------------------------------------------------------- what is an error


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (frame(DATA, 0, 0, b"x"), PROTOCOL_ERROR),
        (frame(DATA, 0, 1, b"x"), PROTOCOL_ERROR),
        (frame(DATA, PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
        (headers(0, request()), PROTOCOL_ERROR),
        (headers(2, request()), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | PADDED, 1, b"\x05abc"), PROTOCOL_ERROR),
        (frame(HEADERS, END_HEADERS | PADDED, 1), FRAME_SIZE_ERROR),
        (frame(HEADERS, END_HEADERS | PRIORITISED, 1, b"abc"), FRAME_SIZE_ERROR),
        (frame(HEADERS, END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff\xff"), COMPRESSION_ERROR),
        (frame(PRIORITY, 0, 0, bytes(5)), PROTOCOL_ERROR),
        (frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
        (rst_stream(0), PROTOCOL_ERROR),
        (rst_stream(1), PROTOCOL_ERROR),
        (frame(RST_STREAM, 0, 1, bytes(3)), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 1), PROTOCOL_ERROR),
        (frame(SETTINGS, ACK, 0, bytes(6)), FRAME_SIZE_ERROR),
        (frame(SETTINGS, 0, 0, bytes(5)), FRAME_SIZE_ERROR),
        (settings((ENABLE_PUSH, 2)), PROTOCOL_ERROR),
        (settings((INITIAL_WINDOW, 2**31)), FLOW_CONTROL_ERROR),
        (settings((MAX_FRAME, 2**14 - 1)), PROTOCOL_ERROR),
        (settings((MAX_FRAME, 2**24)), PROTOCOL_ERROR),
        (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), PROTOCOL_ERROR),
        (frame(PING, 0, 1, bytes(8)), PROTOCOL_ERROR),
        (frame(PING, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
        (frame(GOAWAY, 0, 1, bytes(8)), PROTOCOL_ERROR),
        (frame(GOAWAY, 0, 0, bytes(7)), FRAME_SIZE_ERROR),
        (frame(WINDOW_UPDATE, 0, 0, bytes(3)), FRAME_SIZE_ERROR),
        (window_update(0, 0), PROTOCOL_ERROR),
        (window_update(0, 2**31 - 1), FLOW_CONTROL_ERROR),
        (window_update(1, 1), PROTOCOL_ERROR),
        (window_update(1, 0), PROTOCOL_ERROR),
        (window_update(2, 1), PROTOCOL_ERROR),
        (frame(CONTINUATION, END_HEADERS, 1), PROTOCOL_ERROR),
        ((256 * 1024 + 1).to_bytes(3, "big") + bytes(6), FRAME_SIZE_ERROR),
        (headers(1, request(), 0) + frame(DATA, 0, 1), PROTOCOL_ERROR),
        (headers(1, request(), 0) + frame(PRIORITY, 0, 1, bytes(5)), PROTOCOL_ERROR),
        (headers(1, request(), 0) + frame(0xF0, 0, 1), PROTOCOL_ERROR),
        (headers(1, request(), 0) + frame(CONTINUATION, END_HEADERS, 3), PROTOCOL_ERROR),
        (headers(1, request(), 0) + headers(1, request()), PROTOCOL_ERROR),
        (headers(5, request()) + headers(3, request()), STREAM_CLOSED),
        (headers(5, request()) + frame(DATA, 0, 4), PROTOCOL_ERROR),
    ],
    ids=str,
)
def test_what_is_wrong_with_the_connection_ends_it(data, code):
    async def scenario(session):
        assert ended_by(await session.send(data), code)

    connected(scenario)


_OPEN = headers(1, request())
_HALF_CLOSED = headers(1, request(), END_HEADERS | END_STREAM)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (headers(1, request()[:3]), None),
        (headers(1, [*request(), ("X", "1")]), PROTOCOL_ERROR),
        (headers(1, [*request(), ("connection", "close")]), PROTOCOL_ERROR),
        (_OPEN + headers(1, [("a", "1")]), PROTOCOL_ERROR),
        (_OPEN + headers(1, [(":path", "/")], END_HEADERS | END_STREAM), PROTOCOL_ERROR),
        (_OPEN + headers(1, [("A", "1")], END_HEADERS | END_STREAM), PROTOCOL_ERROR),
        (_OPEN + window_update(1, 0), PROTOCOL_ERROR),
        (_OPEN + window_update(1, 2**31 - 1), FLOW_CONTROL_ERROR),
        (_OPEN + frame(PRIORITY, 0, 1, bytes(4)), FRAME_SIZE_ERROR),
        (_HALF_CLOSED + frame(DATA, 0, 1, b"x"), STREAM_CLOSED),
        (_HALF_CLOSED + headers(1, [("a", "1")], END_HEADERS | END_STREAM), STREAM_CLOSED),
        (_HALF_CLOSED + frame(PRIORITY, 0, 3, bytes(5)), None),
        (_HALF_CLOSED + window_update(1, 1), None),
        (headers(1, request(content_length="3"), 0x5), PROTOCOL_ERROR),
        (headers(1, request(content_length="3")) + frame(DATA, 1, 1, b"ab"), PROTOCOL_ERROR),
        (headers(1, request(content_length="3")) + frame(DATA, 0, 1, b"abcd"), PROTOCOL_ERROR),
        (headers(1, request(content_length="3")) + frame(DATA, 0, 1, b"abc"), None),
        (
            headers(1, request(content_length="3"))
            + frame(DATA, 0, 1, b"ab")
            + headers(1, [("a", "1")], END_HEADERS | END_STREAM),
            PROTOCOL_ERROR,
        ),
    ],
    ids=str,
)
def test_what_is_wrong_with_one_request_ends_that_alone(data, code):
    async def scenario(session):
        sent = await session.send(data)
        ends = [(each.kind, each.stream, each.code) for each in sent if each.kind == RST_STREAM]
        assert ends == ([] if code is None else [(RST_STREAM, 1, code)])
        assert all(asked.is_reset for asked in session.asked.values()) or code is None
        await session.ask(7)
        assert session.asked[7].is_ended
        assert session.alive

    connected(scenario)


def test_frames_for_a_stream_that_was_just_reset_are_let_pass():
    """They were on their way."""

    async def scenario(session):
        asked = await session.ask(1, ends=False)
        asked.stream.reset(ErrorCode.CANCEL)
        assert asked.is_reset
        assert [each.code for each in await session.answers()] == [CANCEL]
        trailers = headers(1, [("a", "1")], END_HEADERS | END_STREAM)
        late = (frame(DATA, 0, 1, b"x" * 100), window_update(1, 5), trailers, rst_stream(1))
        assert await session.send(*late) == []
        assert (asked.body, asked.is_ended, session.alive) == (b"", False, True)

    connected(scenario)


def test_a_frame_after_the_end_of_both_sides_ends_the_connection():
    async def scenario(session):
        asked = await session.ask(1)
        asked.stream.respond(HEAD, (b"x",), TRAILERS)
        await session.answers()
        assert ended_by(await session.send(frame(DATA, 0, 1, b"x")), STREAM_CLOSED)

    connected(scenario)


def test_a_bug_ends_its_connection_and_no_other(caplog):
    async def scenario():
        def broken(_stream):
            raise RuntimeError("a bug")

        session = Session(broken)
        await session.greet()
        assert ended_by(await session.send(_OPEN), INTERNAL_ERROR)
        assert "a bug" in caplog.text
        await end(session)

    asyncio.run(scenario())


# -------------------------------------------------------------- header blocks


def test_a_header_block_may_come_in_pieces_with_padding_and_priority():
    async def scenario(session):
        block = literal(request())
        first = b"\x03" + bytes(5) + block[:7] + bytes(3)
        flags = PADDED | PRIORITISED | END_STREAM
        await session.send(
            frame(HEADERS, flags, 1, first),
            frame(CONTINUATION, 0, 1, block[7:9]),
            frame(CONTINUATION, 0, 1),
            frame(CONTINUATION, END_HEADERS, 1, block[9:]),
        )
        assert session.asked[1].stream.head.path == "/a/b"
        assert session.asked[1].is_ended

    connected(scenario)


def test_trailers_may_come_in_pieces_and_end_the_request():
    async def scenario(session):
        asked = await session.ask(1, ends=False)
        block = literal([("x-checksum", "1")])
        await session.send(frame(DATA, 0, 1, b"body"), frame(HEADERS, END_STREAM, 1, block[:3]))
        assert not asked.is_ended
        await session.send(frame(CONTINUATION, END_HEADERS, 1, block[3:]))
        assert (asked.body, asked.is_ended) == (b"body", True)

    connected(scenario)


@pytest.mark.parametrize(
    "pieces",
    [
        [frame(HEADERS, 0, 1, b"a" * 40_000)],
        [frame(HEADERS, END_HEADERS, 1, b"\x20" * 200_000)],
        [frame(HEADERS, 0, 1), *[frame(CONTINUATION, 0, 1, b"a" * 16_384)] * 3],
        [frame(HEADERS, 0, 1), *[frame(CONTINUATION, 0, 1)] * 40],
    ],
    ids=["long", "resizes", "pieces", "empty pieces"],
)
def test_a_header_block_without_an_end_is_cut_off(pieces):
    async def scenario(session):
        started = time.process_time()
        assert ended_by(await session.send(*pieces), ENHANCE_YOUR_CALM)
        assert time.process_time() - started < 0.1

    connected(scenario)


def test_a_large_header_list_is_told_of_and_the_connection_lives():
    async def scenario(session):
        await session.send(headers(1, request(x="a" * 20_000)))
        assert session.asked[1].stream.head.too_large
        assert not (await session.ask(3)).stream.head.too_large

    connected(scenario)


def test_who_takes_no_table_is_told_that_none_is_used():
    """Or its decoder refuses what comes next, as nghttp2's and hpack's do."""

    async def scenario(session):
        decoder = hpack.Decoder()
        decoder.max_allowed_table_size = 0
        for number, whole in ((1, True), (3, False)):
            asked = await session.ask(number)
            if whole:
                asked.stream.respond(HEAD, (b"x",), TRAILERS)
            else:
                asked.stream.end(HEAD + TRAILERS)
            blocks = [each.payload for each in await session.answers() if each.kind == HEADERS]
            assert decoder.decode(blocks[0])[0] == (":status", "200")
            assert decoder.decode(blocks[-1])[-1] == ("grpc-status", "0")
            decoder.header_table_size = 0

    connected(scenario, (HEADER_TABLE_SIZE, 0))


def test_a_block_larger_than_a_frame_is_sent_in_pieces():
    async def scenario(session):
        asked = await session.ask(1)
        fields = [("grpc-message", "a" * 40_000)]
        asked.stream.end(status_200() + encode(fields))
        sent = await session.answers()
        assert [each.kind for each in sent] == [HEADERS, CONTINUATION, CONTINUATION]
        assert [each.flags for each in sent] == [END_STREAM, 0, END_HEADERS]
        block = b"".join(each.payload for each in sent)
        assert hpack.Decoder(2**20).decode(block) == [(":status", "200"), *fields]

    connected(scenario)


# ----------------------------------------------------------------- requests


def test_streams_beyond_the_limit_are_refused_and_those_before_live():
    async def scenario(session):
        for number in (1, 3):
            await session.ask(number)
        sent = await session.send(headers(5, request()))
        assert [(each.kind, each.stream, each.code) for each in sent] == [
            (RST_STREAM, 5, REFUSED_STREAM)
        ]
        session.asked[1].stream.respond(HEAD, (b"x",), TRAILERS)
        await session.answers()
        await session.ask(7)

    connected(scenario, max_streams=2)


def test_an_answer_before_the_end_of_the_request_asks_for_no_more():
    async def scenario(session):
        asked = await session.ask(1, ends=False)
        asked.stream.end(HEAD + TRAILERS)
        sent = await session.answers()
        assert [(each.kind, each.flags & END_STREAM) for each in sent] == [
            (HEADERS, END_STREAM), (RST_STREAM, 0)
        ]  # fmt: skip
        assert sent[1].code == 0
        assert await session.send(frame(DATA, END_STREAM, 1, b"late")) == []
        assert asked.body == b""

    connected(scenario)


@pytest.mark.parametrize("ends_by", ["headers", "data", "trailers"])
def test_a_request_that_is_refused_as_it_ends_is_not_reset_as_well(ends_by):
    async def scenario():
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

        session = Session(accept)
        await session.greet()
        both = END_HEADERS | END_STREAM
        if ends_by == "headers":
            sent = await session.send(headers(1, request(content_length="0"), both))
        elif ends_by == "data":
            sent = await session.send(_OPEN, frame(DATA, END_STREAM, 1, b"x"))
        else:
            sent = await session.send(_OPEN, headers(1, [("a", "1")], both))
        assert [each.kind for each in sent] == [HEADERS]
        await end(session)

    asyncio.run(scenario())


def test_a_reset_by_the_peer_ends_the_request_and_sends_nothing():
    async def scenario(session):
        asked = await session.ask(1, ends=False)
        assert await session.send(rst_stream(1)) == []
        assert asked.is_reset
        asked.stream.respond(HEAD, (b"x",), TRAILERS)
        asked.stream.send_headers(HEAD)
        asked.stream.send_data(b"x")
        asked.stream.end(TRAILERS)
        asked.stream.consumed(2**20)
        asked.stream.reset(ErrorCode.CANCEL)
        assert await session.answers() == []
        await asyncio.wait_for(asked.stream.wait_writable(), 1)

    connected(scenario)


def test_pings_are_answered_and_goaway_lets_calls_finish():
    async def scenario(session):
        sent = await session.send(frame(PING, 0, 0, b"12345678"), frame(PING, ACK, 0, bytes(8)))
        assert sent == [(PING, ACK, 0, b"12345678")]
        asked = await session.ask(1)
        assert await session.send(frame(GOAWAY, 0, 0, bytes(8) + b"why")) == []
        asked.stream.respond(HEAD, (b"x",), TRAILERS)
        assert [each.kind for each in await session.answers()] == [HEADERS, DATA, HEADERS]

    connected(scenario)


def test_frames_and_settings_that_are_not_known_are_ignored():
    async def scenario(session):
        sent = await session.send(
            frame(0x10, 0xFF, 77, b"x" * 1000), frame(0xFF), settings((0xFFFF, 2**32 - 1))
        )
        assert sent == [(SETTINGS, ACK, 0, b"")]
        assert session.alive

    connected(scenario)


# ------------------------------------------------------------------- the end


def test_a_retired_connection_warns_finishes_and_closes():
    async def scenario(session):
        first = await session.ask(1)
        session.connection.shut_down()
        warning, ping = await session.answers()
        assert (warning.kind, int.from_bytes(warning.payload[:4], "big"), warning.code) == (
            GOAWAY, 2**31 - 1, 0
        )  # fmt: skip
        assert ping.kind == PING
        # What was on its way is still taken,
        second = await session.ask(3)
        (last,) = await session.send(frame(PING, ACK, 0, ping.payload))
        assert (last.kind, int.from_bytes(last.payload[:4], "big"), last.code) == (GOAWAY, 3, 0)
        # and what comes later is refused.
        sent = await session.send(headers(5, request()))
        assert [each.code for each in sent] == [REFUSED_STREAM]
        for asked in (first, second):
            assert session.alive
            asked.stream.respond(HEAD, (b"x",), TRAILERS)
            await session.answers()
        assert session.wire.closing
        assert not session.wire.aborted

    connected(scenario)


def test_a_peer_that_answers_no_ping_is_retired_all_the_same(monkeypatch):
    monkeypatch.setattr(module, "_GOAWAY_SECONDS", 0.01)

    async def scenario(session):
        session.connection.shut_down()
        await asyncio.sleep(0.05)
        assert [each.kind for each in await session.answers()] == [GOAWAY, PING, GOAWAY]
        assert session.wire.closing

    connected(scenario)


@pytest.mark.parametrize("greets", [False, True])
def test_a_connection_may_be_retired_before_it_was_greeted(monkeypatch, greets):
    monkeypatch.setattr(module, "_GOAWAY_SECONDS", 0.01)

    async def scenario():
        session = Session()
        session.connection.shut_down()
        sent = await session.answers()
        if greets:
            sent += await session.greet()
        await asyncio.sleep(0.05)
        sent += await session.answers()
        assert sent[0].kind == SETTINGS
        assert [each.kind for each in sent].count(GOAWAY) == 2
        assert session.wire.closing
        await end(session)

    asyncio.run(scenario())


def test_a_lost_connection_ends_every_request_and_its_waits():
    async def scenario(session):
        asked = [await session.ask(number) for number in (1, 3)]
        asked[0].stream.send_headers(HEAD)
        asked[0].stream.send_data(b"x" * 200_000)
        waiting = asyncio.create_task(asked[0].stream.wait_writable())
        await session.answers()
        session.wire.closing = True
        session.connection.connection_lost(None)
        await asyncio.wait_for(waiting, 1)
        assert all(each.is_reset for each in asked)
        session.connection.data_received(_OPEN)  # asyncio does not, but a TLS layer may
        assert 5 not in session.asked

    connected(scenario)


def test_cut_off_it_says_so_and_closes():
    async def scenario(session):
        asked = await session.ask(1)
        session.connection.close()
        sent = await session.answers()
        assert ended_by(sent, 0)
        assert asked.is_reset

    connected(scenario)


def test_it_is_read_on_after_the_last_word_until_the_peer_closes(monkeypatch):
    monkeypatch.setattr(module, "_ERROR_SECONDS", 0.2)

    async def scenario(session):
        session.wire.half_closes = True
        session.connection.close()
        assert ended_by(await session.answers(), 0)
        assert session.wire.eof
        assert session.alive
        assert not await session.send(_OPEN, frame(PING, 0, 0, bytes(8)))
        assert 1 not in session.asked
        await asyncio.sleep(0.4)
        assert session.wire.aborted  # it has had its time

    connected(scenario)


def test_a_transport_that_is_closing_is_not_half_closed():
    async def scenario(session):
        session.wire.half_closes = session.wire.closing = True
        session.connection.close()
        session.connection.connection_lost(None)

    connected(scenario)


# ------------------------------------------------------------------- floods


def flood(what, *, before=b"", count=5000):
    """How many of a frame are taken before the connection is ended for it."""
    taken = []

    async def scenario(session):
        if before:
            await session.send(before)
        data = [what(number) for number in range(count)]
        started = time.process_time()
        for number, each in enumerate(data):
            session.connection.data_received(each)
            if session.wire.closing:
                taken.append(number)
                break
        assert time.process_time() - started < 2
        sent = await session.answers()
        if taken:
            assert ended_by(sent, ENHANCE_YOUR_CALM)

    connected(scenario)
    return taken[0] if taken else None


@pytest.mark.parametrize(
    ("what", "before"),
    [
        (lambda _: frame(PING, 0, 0, bytes(8)), b""),
        (lambda _: frame(PING, ACK, 0, bytes(8)), b""),
        (lambda _: settings(), b""),
        (lambda _: frame(SETTINGS, ACK), b""),
        (lambda n: settings((INITIAL_WINDOW, n % 2)), b""),
        (lambda _: frame(DATA, 0, 1), _OPEN),
        (lambda _: frame(DATA, PADDED, 1, b"\x03" + bytes(3)), _OPEN),
        (lambda _: frame(DATA, 0, 1), headers(1, request()[:2])),
        (lambda _: headers(1, [], 0x5), headers(1, request()[:2])),
        (lambda _: frame(PRIORITY, 0, 1, bytes(5)), b""),
        (lambda _: frame(GOAWAY, 0, 0, bytes(8)), b""),
        (lambda _: rst_stream(1), _OPEN),
        (lambda _: window_update(0, 1), b""),
        (lambda _: window_update(1, 1), _OPEN),
        (lambda _: frame(0x77, 0, 0), b""),
        # Rapid resets, by the peer and by what it makes the server reset.
        (lambda n: headers(2 * n + 1, request(), 0x5) + rst_stream(2 * n + 1), b""),
        (lambda n: headers(2 * n + 1, request()) + window_update(2 * n + 1, 0), b""),
        (lambda n: headers(2 * n + 1, request()[:2]), b""),
        (lambda n: headers(2 * n + 1, request(content_length="1"), 0x5), b""),
    ],
)  # fmt: skip
def test_a_flood_ends_the_connection(what, before):
    assert 900 <= flood(what, before=before) <= 1100


def test_streams_refused_for_their_number_are_few():
    assert flood(lambda n: headers(2 * n + 1, request()), count=3000) <= 2100


def test_pings_and_windows_that_answer_what_was_sent_are_no_flood():
    """grpc-go pings and grants with each frame of data that it gets."""

    async def scenario(session):
        asked = await session.ask(1)
        asked.stream.send_headers(HEAD)
        for _ in range(3000):
            asked.stream.send_data(b"x" * 10)
            ping = frame(PING, 0, 0, bytes(8))
            await session.send(window_update(0, 10), window_update(1, 10), ping)
        for number in range(3, 4000, 2):
            session.connection.data_received(
                headers(number, request(), 0x5) + frame(PING, 0, 0, bytes(8))
            )
            session.asked.pop(number).stream.respond(HEAD, (b"x",), TRAILERS)
            session.connection.data_received(window_update(0, 1) + frame(PING, 0, 0, bytes(8)))
        await session.answers()
        assert session.alive

    connected(scenario)


def test_a_window_that_changes_a_thousand_times_in_a_frame_is_applied_once():
    async def scenario(session):
        for number in range(1, 2000, 2):
            asked = await session.ask(number)
            asked.stream.send_headers(HEAD)
            asked.stream.send_data(b"x" * 10)
        started = time.process_time()
        pairs = [(INITIAL_WINDOW, number % 2) for number in range(40_000)]
        await session.send(settings(*pairs))
        assert time.process_time() - started < 1
        assert session.alive

    connected(scenario, (INITIAL_WINDOW, 0))


def test_a_peer_that_does_not_read_is_not_read_from():
    """Its requests are refused one by one: what waits to be sent must not grow for ever."""

    async def scenario():
        def refuse(stream):
            stream.end(HEAD + encode([("grpc-message", "a" * 500)]))

        session = Session(refuse)
        await session.greet()
        await session.answers()
        session.connection.pause_writing()
        before = len(session.wire.sent)
        number = 1
        while session.wire.reading and number < 20_000:
            session.connection.data_received(headers(number, request(), 0x5))
            number += 2
            if number % 99 == 0:
                await session.answers()
        assert number < 5000
        assert len(session.wire.sent) == before
        assert session.alive
        session.connection.resume_writing()
        assert session.wire.reading
        assert len(await session.answers()) == (number - 1) // 2
        await end(session)

    asyncio.run(scenario())


def test_parsed_is_the_reverse_of_frame():
    assert parsed(frame(PING, 1, 3, b"x") + frame(DATA)) == [(PING, 1, 3, b"x"), (DATA, 0, 0, b"")]
