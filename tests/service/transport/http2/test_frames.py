"""HTTP/2 frames as bytes, against the hyperframe library, and the rate limit on them."""

import pytest
from hyperframe import frame as reference

from service.transport.http2 import frames
from service.transport.http2.frames import ErrorCode, Http2Error, Setting
from service.transport.http2.rate_limit import TokenBucket


def by_hyperframe(data: bytes) -> reference.Frame:
    made, length = reference.Frame.parse_frame_header(memoryview(data[:9]))
    assert length == len(data) - 9
    made.parse_body(memoryview(data[9:]))
    return made


def test_hyperframe_parses_the_frames_we_build():
    settings = by_hyperframe(
        frames.settings({Setting.MAX_CONCURRENT_STREAMS: 7, Setting.MAX_FRAME_SIZE: 2**20})
    )
    assert settings.settings == {3: 7, 5: 2**20}
    update = by_hyperframe(frames.window_update(3, 2**31 - 1))
    assert (update.stream_id, update.window_increment) == (3, 2**31 - 1)
    reset = by_hyperframe(frames.rst_stream(5, ErrorCode.CANCEL))
    assert (reset.stream_id, reset.error_code) == (5, 8)
    goaway = by_hyperframe(frames.goaway(9, ErrorCode.ENHANCE_YOUR_CALM, "why"))
    assert (goaway.last_stream_id, goaway.error_code, goaway.additional_data) == (9, 11, b"why")
    data = by_hyperframe(frames.frame(frames.DATA, frames.END_STREAM, 11, b"abc"))
    assert (data.stream_id, data.data, "END_STREAM" in data.flags) == (11, b"abc", True)


def test_a_frame_header_survives_a_round_trip():
    data = frames.header(0x123456, 9, 0xFF, 2**31 - 1)
    assert frames.parse_header(b"xx" + data, 2) == (0x123456, 9, 0xFF, 2**31 - 1)
    # The reserved bit is ignored.
    assert frames.parse_header(b"\0\0\0\0\0\x80\0\0\x05", 0)[3] == 5


def test_settings_are_parsed_in_order_including_unknown_ones():
    data = reference.SettingsFrame(0, settings={4: 1, 0xF0: 2}).serialize()[9:]
    assert list(frames.parse_settings(data)) == [(4, 1), (0xF0, 2)]


@pytest.mark.parametrize("padding", [0, 1, 200])
def test_padding_is_stripped(padding):
    payload = bytes((padding,)) + b"body" + bytes(padding)
    assert frames.strip_padding(payload, frames.PADDED) == b"body"
    assert frames.strip_padding(payload, 0) == payload


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (b"", ErrorCode.FRAME_SIZE_ERROR),
        (b"\x01", ErrorCode.PROTOCOL_ERROR),
        (b"\x05four", ErrorCode.PROTOCOL_ERROR),
    ],
)
def test_padding_longer_than_the_payload_is_an_error(payload, code):
    with pytest.raises(Http2Error) as caught:
        frames.strip_padding(payload, frames.PADDED)
    assert (caught.value.code, caught.value.stream_id) == (code, 0)
    assert frames.strip_padding(b"\x04four", frames.PADDED) == b""


def test_a_token_bucket_has_a_burst_and_a_rate():
    now = 0.0
    bucket = TokenBucket(3, 2.0, lambda: now)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    now = 0.4
    assert not bucket.take()
    now = 0.5
    assert [bucket.take() for _ in range(2)] == [True, False]
    now = 1000.0
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
    bucket.add(2)
    assert [bucket.take() for _ in range(3)] == [True, True, False]
    bucket.add(10)
    assert [bucket.take() for _ in range(4)] == [True, True, True, False]
