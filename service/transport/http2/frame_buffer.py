"""Splits received bytes into HTTP/2 frames."""

from collections.abc import Iterator

from service.transport.http2.frames import (
    DATA,
    END_STREAM,
    HEADER,
    HEADER_BYTES,
    MAX_FRAME_BYTES,
    MAX_STREAM_ID,
    ErrorCode,
    Http2Error,
    parse_header,
)

#: Type, flags, stream identifier, payload.
Frame = tuple[int, int, int, bytes]


class FrameBuffer:
    """Splits the bytes that a connection receives into frames; buffers an incomplete frame."""

    __slots__ = ("_needed", "_partial")

    def __init__(self) -> None:
        self._partial = bytearray()
        # Length that `_partial` must reach before it can be parsed: that of a header or a whole
        # frame.
        self._needed = HEADER_BYTES

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Adds received bytes; yields the frames that are complete.

        Consecutive DATA frames of one stream are joined into one, since most clients send only
        16 KiB in each.

        Raises:
            Http2Error: A frame is longer than MAX_FRAME_BYTES.
        """
        at, end = 0, len(data)
        if self._partial:
            at = self._complete(data)
            if len(self._partial) < self._needed:
                return
            frame, self._partial = bytes(self._partial), bytearray()
            _, frame_type, flags, stream_id = parse_header(frame, 0)
            yield frame_type, flags, stream_id, frame[HEADER_BYTES:]
        unpack = HEADER.unpack_from
        while end - at >= HEADER_BYTES:
            high, low, frame_type, flags, stream_id = unpack(data, at)
            length = high << 8 | low
            start = at + HEADER_BYTES
            stop = start + length
            if length > MAX_FRAME_BYTES:
                raise _too_long(length)
            if stop > end:
                self._needed = stop - at
                self._partial += data[at:]
                return
            at = stop
            stream_id &= MAX_STREAM_ID
            payload = data[start:stop]
            if frame_type == DATA and not flags and length:
                payload, flags, at = _join_data(data, payload, stream_id, at)
            yield frame_type, flags, stream_id, payload
        if at < end:
            self._needed = HEADER_BYTES
            self._partial += data[at:]

    def _complete(self, data: bytes) -> int:
        """Appends the bytes that the partial frame lacks; returns the offset in `data` after them.

        The rest of `data` is not copied.
        """
        partial, at = self._partial, 0
        if len(partial) < HEADER_BYTES:
            at = HEADER_BYTES - len(partial)
            partial += data[:at]
            if len(partial) < HEADER_BYTES:
                return len(data)
            length = parse_header(partial, 0)[0]
            if length > MAX_FRAME_BYTES:
                raise _too_long(length)
            self._needed = HEADER_BYTES + length
        stop = at + self._needed - len(partial)
        partial += data[at:stop]
        return stop


def _join_data(data: bytes, payload: bytes, stream_id: int, at: int) -> tuple[bytes, int, int]:
    """Joins a DATA frame with those of the same stream that directly follow it.

    Args:
        data: Received bytes.
        payload: Payload of the first frame, which has no flags.
        stream_id: Stream of the first frame.
        at: Offset of the next frame in `data`.

    Returns:
        The joined payload, the flags of the last joined frame, and the offset of the next frame.
    """
    parts: list[bytes | memoryview] = [payload]
    view, end, flags = memoryview(data), len(data), 0
    while not flags and end - at >= HEADER_BYTES:
        length, frame_type, flags, next_id = parse_header(data, at)
        stop = at + HEADER_BYTES + length
        if (
            stop > end
            or frame_type != DATA
            or next_id != stream_id
            or not 0 < length <= MAX_FRAME_BYTES
            or flags not in (0, END_STREAM)
        ):
            flags = 0
            break
        parts.append(view[at + HEADER_BYTES : stop])
        at = stop
    return (payload if len(parts) == 1 else b"".join(parts)), flags, at


def _too_long(length: int) -> Http2Error:
    return Http2Error(
        ErrorCode.FRAME_SIZE_ERROR, f"frame: {length} bytes, wanted at most {MAX_FRAME_BYTES}"
    )
