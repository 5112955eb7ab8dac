"""One HTTP/2 connection: preface, streams and shutdown."""

import asyncio
import logging
import socket
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, Final, Protocol, cast

from service.net.addresses import shown_address
from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error, Setting
from service.transport.http2.headers import MAX_HEADER_LIST_BYTES
from service.transport.http2.outbox import UNCOUNTED, Outbox, ReplyBytes
from service.transport.http2.reader import CONNECTION_WINDOW, Reader
from service.transport.http2.stream import NULL_RECEIVER, STREAM_WINDOW, Stream, Streams

_log = logging.getLogger(__name__)

#: Default of our SETTINGS_MAX_CONCURRENT_STREAMS.
MAX_STREAMS: Final = 1000
# Time for the client to complete its preface.
_PREFACE_SECONDS = 10.0
# Time for the client to acknowledge the first GOAWAY of a graceful shutdown.
_GOAWAY_SECONDS = 1.0
# Time for the client to close the connection once queued DATA has been sent. If we half-closed
# first, Envoy would reset streams that it has received in whole but not passed on yet.
_LEAVING_SECONDS = 4.0
# Time for the client to read its last responses and close the connection, once it is half-closed.
_LINGER_SECONDS = 10.0
# Time for the client to read the GOAWAY after an error and close the connection.
_ERROR_SECONDS = 1.0
_SHUTDOWN_PING = b"retiring"
_HTTP_1: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC, which is HTTP/2.\n"
)


class Listener(Protocol):
    """Owner of connections; answers the requests that they receive."""

    def made(self, connection: "Connection") -> None:
        """Called when a connection has been made."""

    def accept(self, stream: Stream) -> None:
        """Sets the receiver of a new stream, or answers its request at once."""

    def lost(self, connection: "Connection") -> None:
        """Called when a connection has been closed by either side, or lost."""


class Connection(asyncio.Protocol):
    """The server's end of one connection; the `Session` of its reader.

    Args:
        listener: Answers the requests.
        max_streams: Our SETTINGS_MAX_CONCURRENT_STREAMS.
        replies: Counts the responses that wait to be sent.

    Attributes:
        peer: Address of the client, as in `ipv4:127.0.0.1:4711`.
        closing: Whether the connection is closing; further input is ignored.
    """

    def __init__(
        self,
        listener: Listener,
        max_streams: int = MAX_STREAMS,
        replies: ReplyBytes = UNCOUNTED,
    ):
        self.peer = ""
        self.closing = False
        self._listener = listener
        self._max_streams = max_streams
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams = Streams(max_streams)
        self._outbox = Outbox(self._loop, replies)
        self._reader: Reader | None = Reader(self, self._streams, self._outbox)
        self._preface_sent = False
        self._shutting_down = False
        self._preface_timer: asyncio.TimerHandle | None = None
        self._close_timer: asyncio.TimerHandle | None = None

    # Called by asyncio.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Sets the transport up and starts the timeout of the client's preface."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is not a subclass
        self._transport = transport
        self._outbox.attach(transport)
        self.peer = shown_address(transport.get_extra_info("peername"))
        _set_options(transport.get_extra_info("socket"))
        self._preface_timer = self._loop.call_later(_PREFACE_SECONDS, self._abort)
        self._listener.made(self)

    def data_received(self, data: bytes) -> None:
        """Processes received bytes; a connection error closes the connection."""
        if self.closing or self._reader is None:
            return
        try:
            self._reader.feed(data)
            self._outbox.limit_reading()
        except Http2Error as error:
            self._fail(error.code, str(error))
        except Exception:  # noqa: BLE001 - a bug in one connection must not end the others
            _log.exception("connection of %s", self.peer)
            self._fail(ErrorCode.INTERNAL_ERROR, "internal error")

    def pause_writing(self) -> None:
        """Pauses output: the peer reads more slowly than we write."""
        self._outbox.pause_writing()

    def resume_writing(self) -> None:
        """Resumes output."""
        self._outbox.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Closes every stream, cancels the timers and drops queued output."""
        self.closing = True
        for timer in (self._preface_timer, self._close_timer):
            if timer is not None:
                timer.cancel()
        self._outbox.abort()
        self._close_streams()
        self._reader = None  # breaks a reference cycle
        self._listener.lost(self)

    # Called by the server.

    @property
    def streams(self) -> list[Stream]:
        """Open streams."""
        return list(self._streams.open.values())

    @property
    def refuses_streams(self) -> bool:
        """Whether new streams are refused: the last GOAWAY has been sent."""
        return self._streams.refusing or self.closing

    def unread(self) -> Iterator[tuple[float, int, Stream | None]]:
        """Yields the response bytes that the peer has not read yet; called about once a second.

        Yields:
            Triples: time when the peer last read some of these bytes, on the event loop's clock;
            their number; and their stream, or None for the transport's buffer.
        """
        outbox = self._outbox
        outbox.sample_buffer()
        if outbox.buffered_bytes:
            yield outbox.moved_at, outbox.buffered_bytes, None
        for stream in self.streams:
            queue = stream.send_queue
            if queue.queued_bytes:
                queue.detach()
                # If its own window is open, it waits for the connection's window or for its turn.
                moved_at = queue.moved_at if queue.window <= 0 else outbox.moved_at
                yield max(moved_at, queue.moved_at), queue.queued_bytes, stream

    def shut_down(self) -> None:
        """Starts a graceful shutdown: open streams finish, then the connection closes.

        The first GOAWAY is a warning (RFC 9113 section 6.8): requests already on their way are
        still answered. New streams are refused once the client acknowledges the PING sent after it.
        """
        if self._shutting_down or self.closing:
            return
        self._shutting_down = True
        self.send_preface()
        self._outbox.emit(frames.goaway(frames.MAX_STREAM_ID, ErrorCode.NO_ERROR))
        self._outbox.emit(frames.frame(frames.PING, 0, 0, _SHUTDOWN_PING))
        self._call_later(_GOAWAY_SECONDS, self._refuse_streams)

    def abort(self) -> None:
        """Closes the connection without sending anything more."""
        self._abort()

    def refuse_streams(self) -> None:
        """Sends the last GOAWAY of a graceful shutdown that `shut_down` has begun."""
        self._refuse_streams()

    def close(self) -> None:
        """Closes the connection at once; open streams are cut off."""
        if not self.closing:
            self._fail(ErrorCode.NO_ERROR, "")

    # Called by the reader.

    def send_preface(self) -> None:
        """Sends the server's connection preface (RFC 9113 section 3.4), once."""
        if self._preface_sent:
            return
        self._preface_sent = True
        self._outbox.emit(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: self._max_streams,
                    Setting.INITIAL_WINDOW_SIZE: STREAM_WINDOW,
                    Setting.MAX_FRAME_SIZE: frames.MAX_FRAME_BYTES,
                    Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
                }
            )
        )
        self._outbox.emit(frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    def refuse_http_1(self) -> None:
        """Answers an HTTP/1.1 client with status 505, and closes the connection."""
        self._outbox.emit(_HTTP_1)
        self._close_after(_ERROR_SECONDS)

    def on_settings(self) -> None:
        """Cancels the timeout of the client's preface, which is complete."""
        assert self._preface_timer is not None
        self._preface_timer.cancel()

    def on_ping_ack(self, data: bytes) -> bool:
        """Handles the acknowledgement of a PING; returns whether the PING was ours."""
        if not self._shutting_down or data != _SHUTDOWN_PING:
            return False
        self._refuse_streams()
        return True

    def on_request(self, stream: Stream) -> None:
        """Passes a new stream to the listener, which sets its receiver."""
        self._listener.accept(stream)

    def on_reset(self, stream_id: int) -> None:
        """Closes an open stream that the client has reset."""
        self._close_stream(stream_id)
        self._close_if_drained()

    # Called by the reader and by streams.

    def on_sent(self, stream_id: int) -> None:
        """Closes a stream on which END_STREAM has been sent."""
        stream = self._streams.open.pop(stream_id)
        stream.closed = True
        receiver, stream.receiver = stream.receiver, NULL_RECEIVER  # breaks a reference cycle
        receiver.on_sent()
        if not stream.remote_ended:
            # The rest of the request is not needed (RFC 9113 section 8.1).
            self._send_reset(stream_id, ErrorCode.NO_ERROR)
        if self._streams.refusing:
            self._close_if_drained()

    def reset(self, stream_id: int, code: ErrorCode) -> None:
        """Sends RST_STREAM, and closes the stream if it is open (a refused stream never was)."""
        self._close_stream(stream_id)
        self._send_reset(stream_id, code)
        self._close_if_drained()

    # Closing.

    def _send_reset(self, stream_id: int, code: ErrorCode) -> None:
        self._streams.add_reset(stream_id)
        self._outbox.emit(frames.rst_stream(stream_id, code))

    def _close_stream(self, stream_id: int) -> None:
        stream = self._streams.open.pop(stream_id, None)
        if stream is None:
            return
        stream.closed = True
        self._outbox.discard(stream.send_queue)
        receiver, stream.receiver = stream.receiver, NULL_RECEIVER  # breaks a reference cycle
        receiver.on_reset()

    def _close_streams(self) -> None:
        for stream_id in list(self._streams.open):
            self._close_stream(stream_id)

    def _fail(self, code: ErrorCode, problem: str) -> None:
        """Sends GOAWAY and closes the connection."""
        self.send_preface()  # SETTINGS has to be the first frame
        if code is not ErrorCode.NO_ERROR:
            _log.debug("connection of %s: %s: %s", self.peer, code.name, problem)
        self._outbox.emit(frames.goaway(self._streams.last, code, problem))
        self._close_after(_ERROR_SECONDS)

    def _close_after(self, seconds: float) -> None:
        """Closes the connection once the client has closed its side, or after `seconds`."""
        self.closing = True
        assert self._transport is not None
        self._call_later(seconds, self._abort)
        self._outbox.close()
        self._close_streams()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            # Closing a socket with unread input resets it, and the client would lose what it
            # has not read yet. So half-close, and read until the client closes.
            try:
                self._transport.write_eof()
            except OSError:  # the client has reset the connection, and asyncio has yet to notice
                self._transport.abort()
        else:
            self._transport.close()  # TLS: sends close_notify and waits for the client's

    def _refuse_streams(self) -> None:
        if self._streams.refusing or self.closing:
            return
        self._streams.refusing = True
        self._outbox.emit(frames.goaway(self._streams.last, ErrorCode.NO_ERROR))
        self._close_if_drained()

    def _close_if_drained(self) -> None:
        if not self._streams.refusing or self._streams.open or self.closing:
            return
        leaving = self._outbox.moved_at + _LEAVING_SECONDS - self._loop.time()
        if leaving > 0:
            self._call_later(leaving, partial(self._close_after, _LINGER_SECONDS))
        else:
            self._close_after(_LINGER_SECONDS)

    def _abort(self) -> None:
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def _call_later(self, seconds: float, then: Callable[[], Any]) -> None:
        if self._close_timer is not None:
            self._close_timer.cancel()
        self._close_timer = self._loop.call_later(seconds, then)


def _set_options(sock: Any) -> None:
    """Sets TCP_NODELAY, and keep-alive to detect clients that have vanished."""
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
