"""One connection: its beginning, its streams, and its end."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any, Final, Protocol, cast

from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error, Setting
from service.transport.http2.headers import MAX_HEADER_LIST_BYTES
from service.transport.http2.outbox import Outbox
from service.transport.http2.reader import CONNECTION_WINDOW, Reader
from service.transport.http2.stream import NOBODY, WINDOW, Stream, Streams

_log = logging.getLogger(__name__)

MAX_STREAMS: Final = 1000
_HANDSHAKE_SECONDS = 10.0
# How long a peer has to see that a connection is being retired, to read what it has been
# sent before that is closed, and to see what it did wrong.
_NOTICE_SECONDS = 1.0
_LINGER_SECONDS = 10.0
_FAILED_SECONDS = 1.0
_RETIRING = b"retiring"
_HTTP_1: Final = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\ncontent-type: text/plain\r\n"
    b"connection: close\r\n\r\nThis port speaks gRPC, which is HTTP/2.\n"
)


class Listener(Protocol):
    """Whom connections belong to."""

    def made(self, connection: "Connection") -> None:
        """There is a new connection."""

    def accept(self, stream: Stream) -> None:
        """Sets the receiver of a new request."""

    def lost(self, connection: "Connection") -> None:
        """A connection is no more."""


class Connection(asyncio.Protocol):
    """The server's end of one connection.

    Args:
        listener: Accepts the requests.
        max_streams: Most requests at a time.

    Attributes:
        peer: Who is at the other end, as in `ipv4:127.0.0.1:4711`.
        closing: Whether nothing that still comes is read.
        refusing: Whether new streams are refused.
    """

    def __init__(self, listener: Listener, max_streams: int = MAX_STREAMS):
        self.peer = ""
        self.closing = False
        self.refusing = False
        self._listener = listener
        self._max_streams = max_streams
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams = Streams(max_streams)
        self._outbox = Outbox(self._loop)
        self._reader: Reader | None = Reader(self, self._streams, self._outbox)
        self._welcomed = False
        self._retiring = False
        self._handshake: asyncio.TimerHandle | None = None
        self._ending: asyncio.TimerHandle | None = None

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Waits for the peer's preface; who speaks HTTP/1.1 is answered in that."""
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self._transport = transport
        self._outbox.open(transport)
        self.peer = _peer(transport)
        _prepare(transport.get_extra_info("socket"))
        self._handshake = self._loop.call_later(_HANDSHAKE_SECONDS, self._abort)
        self._listener.made(self)

    def data_received(self, data: bytes) -> None:
        """Takes what came; whatever is wrong with it ends a stream or the connection."""
        if self.closing or self._reader is None:
            return
        try:
            self._reader.feed(data)
            self._outbox.ease()
        except Http2Error as error:
            self._fail(error.code, str(error))
        except Exception:  # noqa: BLE001 - a bug in one connection must not end the others
            _log.exception("connection of %s", self.peer)
            self._fail(ErrorCode.INTERNAL_ERROR, "internal error")

    def pause_writing(self) -> None:
        """The peer does not read as fast as it is written to."""
        self._outbox.block()

    def resume_writing(self) -> None:
        """It has caught up."""
        self._outbox.unblock()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        """Lets go of everything."""
        self.closing = True
        for timer in (self._handshake, self._ending):
            if timer is not None:
                timer.cancel()
        self._outbox.drop()
        for number in list(self._streams.open):
            self._let_go(number)
        self._reader = None  # or the two would refer to each other until gc finds them
        self._listener.lost(self)

    # What the server calls.

    def retire(self) -> None:
        """Lets requests in flight finish and takes no more (RFC 9113 section 6.8).

        The peer is warned first, so that what it has sent by then is still answered.
        """
        if self._retiring or self.closing:
            return
        self._retiring = True
        self.welcome()
        self._outbox.emit(frames.goaway(frames.LAST_STREAM, ErrorCode.NO_ERROR))
        self._outbox.emit(frames.frame(frames.PING, 0, 0, _RETIRING))
        self._end_in(_NOTICE_SECONDS, self._refuse_more)

    def close(self) -> None:
        """Cuts off what is in flight."""
        if not self.closing:
            self._fail(ErrorCode.NO_ERROR, "")

    # What its reader calls.

    def welcome(self) -> None:
        """Says what the peer may send; before anything else is said."""
        if self._welcomed:
            return
        self._welcomed = True
        self._outbox.emit(
            frames.settings(
                {
                    Setting.MAX_CONCURRENT_STREAMS: self._max_streams,
                    Setting.INITIAL_WINDOW_SIZE: WINDOW,
                    Setting.MAX_FRAME_SIZE: frames.MAX_FRAME_BYTES,
                    Setting.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
                }
            )
        )
        self._outbox.emit(frames.window_update(0, CONNECTION_WINDOW - frames.DEFAULT_WINDOW))

    def settled(self) -> None:
        """The peer has said what it takes, as it must in time."""
        assert self._handshake is not None
        self._handshake.cancel()

    def refuse_http_1(self) -> None:
        """Tells who speaks HTTP/1.1 that nobody does here."""
        self._outbox.emit(_HTTP_1)
        self._hang_up(_FAILED_SECONDS)

    def accept(self, stream: Stream) -> None:
        """Sets the receiver of a new request."""
        self._listener.accept(stream)

    def noticed(self, ping: bytes) -> bool:
        """Whether an answer to a ping means that the peer knows of the retirement."""
        if not self._retiring or ping != _RETIRING:
            return False
        self._refuse_more()
        return True

    def lose(self, number: int) -> None:
        """The peer does not want a response any more."""
        self._let_go(number)
        self._close_if_retired()

    def fail_stream(self, error: Http2Error) -> None:
        """Ends the stream that an error is about."""
        self._let_go(error.stream)
        self._cut(error.stream, error.code)
        self._close_if_retired()

    # What streams call.

    def ended(self, stream: Stream) -> None:
        """A response is out."""
        stream.local_ended = True
        if self._streams.open.pop(stream.id, None) is None:
            return
        receiver, stream.receiver = stream.receiver, NOBODY  # no cycle is left for gc
        receiver.on_sent()
        if not stream.remote_ended:
            # Nothing that the peer may still send matters (RFC 9113 section 8.1).
            self._cut(stream.id, ErrorCode.NO_ERROR)
        self._close_if_retired()

    def reset(self, stream: Stream, code: ErrorCode) -> None:
        """Ends a stream where it is."""
        if stream.id in self._streams.open:
            self._let_go(stream.id)
            self._cut(stream.id, code)
            self._close_if_retired()

    # Ends.

    def _cut(self, number: int, code: ErrorCode) -> None:
        self._streams.abandon(number)
        self._outbox.emit(frames.rst_stream(number, code))

    def _let_go(self, number: int) -> None:
        stream = self._streams.open.pop(number, None)
        if stream is not None:
            receiver = stream.receiver
            self._forget(stream)
            receiver.on_reset()

    def _forget(self, stream: Stream) -> None:
        stream.receiver = NOBODY
        stream.local_ended = stream.remote_ended = True
        self._outbox.forget(stream)

    def _fail(self, code: ErrorCode, problem: str) -> None:
        """Says why, and hangs up."""
        self.welcome()  # nothing may come before it
        if code is not ErrorCode.NO_ERROR:
            _log.debug("connection of %s: %s: %s", self.peer, code.name, problem)
        self._outbox.emit(frames.goaway(self._streams.last, code, problem))
        self._hang_up(_FAILED_SECONDS)

    def _hang_up(self, seconds: float) -> None:
        """Closes once the peer has what is written, or after so long."""
        self.closing = True
        assert self._transport is not None
        self._end_in(seconds, self._abort)
        self._outbox.finish()
        for number in list(self._streams.open):
            self._let_go(number)
        if self._transport.can_write_eof() and not self._transport.is_closing():
            # A socket that is closed while something for it is on its way is reset, and then
            # the peer loses what it has not read. So it is read from until the peer closes.
            self._transport.write_eof()
        else:
            self._transport.close()  # TLS says goodbye, and waits for that of the peer

    def _refuse_more(self) -> None:
        if self.refusing or self.closing:
            return
        self.refusing = True
        self._outbox.emit(frames.goaway(self._streams.last, ErrorCode.NO_ERROR))
        self._close_if_retired()

    def _close_if_retired(self) -> None:
        if self.refusing and not self._streams.open and not self.closing:
            self._hang_up(_LINGER_SECONDS)

    def _abort(self) -> None:
        self.closing = True
        if self._transport is not None:
            self._transport.abort()

    def _end_in(self, seconds: float, then: Callable[[], Any]) -> None:
        if self._ending is not None:
            self._ending.cancel()
        self._ending = self._loop.call_later(seconds, then)


def _peer(transport: asyncio.Transport) -> str:
    address = transport.get_extra_info("peername")
    if not isinstance(address, tuple) or len(address) < 2:
        return "unknown"
    host, port = address[:2]
    return f"ipv6:[{host}]:{port}" if ":" in host else f"ipv4:{host}:{port}"


def _prepare(sock: Any) -> None:
    """Small answers go out at once, and a peer that has vanished is found out."""
    if sock is None:
        return
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 20), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
