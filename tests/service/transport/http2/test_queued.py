"""DATA that waits: counted until it is sent or dropped, and cut off where a stream has to end."""

import asyncio

import numpy as np
import pytest

from service.transport.http2.headers import encode, status_200
from tests.support.http2_peer import (
    DATA,
    END_STREAM,
    HEADERS,
    INITIAL_WINDOW,
    RST_STREAM,
    connected,
    rst_stream,
    window_update,
)

HEAD = status_200() + encode([("content-type", "application/grpc")])
TRAILERS, CUT = encode([("grpc-status", "0")]), encode([("grpc-status", "14")])
BODY = bytes(range(251)) * 400  # 100,400 bytes


class Held:
    """Counts held bytes, up to a limit."""

    def __init__(self, most: int = 10**9):
        self.bytes = 0
        self._most = most

    def hold(self, count):
        assert count >= 0
        self.bytes += count

    def release(self, count):
        self.bytes -= count
        assert self.bytes >= 0

    def has_room(self, count):
        return self.bytes + count <= self._most


def data_of(sent, number=1):
    return b"".join(frame.payload for frame in sent if frame[0] == DATA and frame.stream == number)


def trailers_of(sent, number=1):
    """The block that ends the stream."""
    (frame,) = [frame for frame in sent if frame.kind == HEADERS and frame.flags & END_STREAM]
    assert frame.stream == number
    return frame.payload


@pytest.mark.parametrize("ends_by", ["window", "reset", "loss", "close"])
def test_queued_data_is_counted_until_it_is_sent_or_dropped(ends_by):
    held = Held()

    async def scenario(peer):
        request = await peer.open(1)
        assert request.stream.respond(HEAD, (BODY,), TRAILERS)
        await peer.receive()
        assert held.bytes == len(BODY) - 65_535
        if ends_by == "window":
            await peer.send(window_update(0, 10_000), window_update(1, 10_000))
            assert held.bytes == len(BODY) - 75_535
            await peer.send(window_update(0, 10**6), window_update(1, 10**6))
        elif ends_by == "reset":
            await peer.send(rst_stream(1))
        elif ends_by == "close":
            peer.connection.close()
        else:
            peer.transport.abort()
        await peer.receive()
        assert held.bytes == 0

    connected(scenario, replies=held)


def test_a_small_response_that_is_sent_at_once_is_not_counted():
    held = Held(0)

    async def scenario(peer):
        request = await peer.open(1)
        assert request.stream.respond(HEAD, (b"small",), TRAILERS)
        assert request.is_sent

    connected(scenario, replies=held)


def test_a_response_without_room_is_not_begun():
    held = Held(len(BODY) - 1)

    async def scenario(peer):
        request = await peer.open(1)
        assert not request.stream.respond(HEAD, (BODY,), TRAILERS)
        assert not request.stream.headers_sent
        assert await peer.receive() == []
        request.stream.end(CUT)
        assert trailers_of(await peer.receive()) == CUT

    connected(scenario, replies=held)


def test_what_the_kernel_does_not_take_is_counted_while_writing_is_paused():
    held = Held()

    async def scenario(peer):
        peer.transport.buffered = 70_000
        peer.connection.pause_writing()
        assert held.bytes == 70_000
        ((_, count, stream),) = peer.connection.unread()
        assert (count, stream) == (70_000, None)
        peer.transport.buffered = 30_000
        assert [count for _, count, _ in peer.connection.unread()] == [30_000]
        assert held.bytes == 30_000
        peer.connection.resume_writing()
        assert held.bytes == 0
        assert list(peer.connection.unread()) == []
        peer.connection.pause_writing()
        assert held.bytes == 30_000
        peer.transport.abort()
        await peer.receive()
        assert held.bytes == 0

    connected(scenario, replies=held)


@pytest.mark.parametrize("window", [0, 1000, 10**6])
@pytest.mark.parametrize("whole", [True, False])
def test_a_cut_sends_what_the_windows_allow_and_then_trailers(window, whole):
    held = Held()

    async def scenario(peer):
        request = await peer.open(1)
        if whole:
            request.stream.respond(HEAD, (BODY[:50_000],), TRAILERS)
        else:
            request.stream.send_headers(HEAD)
            request.stream.send_data(BODY[:50_000])
        request.stream.cut(CUT)
        assert request.is_sent
        assert held.bytes == 0
        sent = await peer.receive()
        complete = window > 50_000
        assert len(data_of(sent)) == min(window, 50_000)
        assert trailers_of(sent) == (TRAILERS if complete and whole else CUT)
        request.stream.cut(CUT)  # closed: nothing more is sent
        assert await peer.receive() == []
        other = await peer.open(3)
        other.stream.end(TRAILERS)
        assert trailers_of(await peer.receive(), 3) == TRAILERS

    connected(scenario, (INITIAL_WINDOW, window), replies=held)


def test_a_cut_leaves_the_other_streams_of_its_connection_alone():
    async def scenario(peer):
        requests = [await peer.open(number) for number in (1, 3, 5)]
        for request in requests:
            request.stream.respond(HEAD, (BODY,), TRAILERS)
        await peer.receive()
        requests[1].stream.cut(CUT)
        assert trailers_of(await peer.receive(), 3) == CUT
        sent = await peer.send(
            window_update(0, 10**6), window_update(1, 10**6), window_update(5, 10**6)
        )
        assert {frame.stream for frame in sent} == {1, 5}
        assert requests[0].is_sent
        assert requests[2].is_sent

    connected(scenario)


def test_a_cut_before_the_end_of_the_request_resets_with_no_error():
    async def scenario(peer):
        request = await peer.open(1, ends=False)
        request.stream.cut(HEAD + CUT)
        kinds = [frame.kind for frame in await peer.receive()]
        assert kinds == [HEADERS, RST_STREAM]

    connected(scenario)


def test_progress_is_the_peers_and_not_a_byte_now_and_then():
    async def scenario(peer):
        request = await peer.open(1)
        request.stream.respond(HEAD, (BODY,), TRAILERS)
        await peer.receive()
        queue, began = request.stream.send_queue, request.stream.send_queue.moved_at
        await asyncio.sleep(0.02)
        await peer.send(window_update(1, 100))
        assert queue.moved_at == began
        await peer.send(window_update(1, 5000))
        assert queue.moved_at > began
        ((moved_at, count, stream),) = peer.connection.unread()
        assert (moved_at, count, stream) == (queue.moved_at, queue.queued_bytes, request.stream)

    connected(scenario, (INITIAL_WINDOW, 1000))


def test_a_view_that_waits_long_does_not_keep_its_array():
    async def scenario(peer):
        batch = np.zeros((10, 100_000), np.uint8)
        request = await peer.open(1)
        request.stream.respond(HEAD, (b"head", batch[3].data.cast("B")), TRAILERS)
        await peer.receive()
        chunks = request.stream.send_queue.chunks
        list(peer.connection.unread())
        assert type(chunks[0]) is memoryview
        list(peer.connection.unread())
        assert [type(chunk) for chunk in request.stream.send_queue.chunks] == [bytes]
        sent = await peer.send(window_update(0, 10**6), window_update(1, 10**6))
        assert request.is_sent
        assert data_of(sent) == bytes(100_004 - 65_535)

    connected(scenario)
