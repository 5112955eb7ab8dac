"""The movie of a training, as a GIF and as an MP4 of the same frames."""

import io
import math
import tempfile
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace
from numpy.typing import NDArray
from PIL import Image

from training.report.story import Bytes

FRAMES_PER_SECOND = 10
#: How long the last frame stays.
HOLD_SECONDS = 2

_GIF_BYTES = 4_000_000
_GIF_WIDTHS = (800, 640, 480, 400)
# One less than a GIF may have: the last index marks what has no colour yet.
_GIF_COLOURS = 255
_UNKNOWN = 255
_MP4_BYTES = 1_500_000
# x264's scale of quality: 18 cannot be told from the original, 45 is coarse, and each
# 6 more make about half the size.
_BEST_FACTOR, _WORST_FACTOR = 23, 45


def encode_gif(frames: Sequence[Bytes]) -> bytes:
    """Encodes frames uint8 [h, w, 3] as an endless GIF, the last one held.

    All frames share one palette, so that colours do not flicker. It is made narrower
    until it is small.
    """
    for width in _GIF_WIDTHS:
        gif = _encode_gif(frames, width)
        if len(gif) <= _GIF_BYTES:
            break
    return gif


def _encode_gif(frames: Sequence[Bytes], width: int) -> bytes:
    size = (width, round(width * frames[0].shape[0] / frames[0].shape[1]))
    small = [
        np.asarray(Image.fromarray(each).resize(size, Image.Resampling.BOX)) for each in frames
    ]
    palette = _shared_palette([small[0], small[len(small) // 2], small[-1]])
    flat = []
    for indices in _nearest(small, palette):
        picture = Image.fromarray(indices)
        picture.putpalette(palette.tobytes())
        flat.append(picture)
    durations = [1000 // FRAMES_PER_SECOND] * (len(flat) - 1) + [1000 * HOLD_SECONDS]
    buffer = io.BytesIO()
    flat[0].save(buffer, "GIF", save_all=True, append_images=flat[1:], duration=durations, loop=0)
    return buffer.getvalue()


def _shared_palette(pictures: Sequence[Bytes]) -> Bytes:
    """Colours [_GIF_COLOURS at most, 3] that suit all of some pictures [h, w, 3].

    Half of them are the very colours there is most of, so that paper stays white and a
    class keeps its colour; the others are made for what is between.
    """
    pixels = np.concatenate([each.reshape(-1, 3) for each in pictures])
    codes = _codes(pixels)
    colours, counts = np.unique(codes, return_counts=True)
    exact = colours[np.argsort(-counts, kind="stable")[: _GIF_COLOURS // 2]]
    palette = np.stack([exact >> 16, exact >> 8 & 255, exact & 255], axis=1).astype(np.uint8)
    rest = pixels[~np.isin(codes, exact)]
    if len(rest):
        between = Image.fromarray(rest[None]).quantize(_GIF_COLOURS - len(exact)).getpalette()
        palette = np.concatenate([palette, np.array(between, np.uint8).reshape(-1, 3)])
    return palette


def _nearest(pictures: Sequence[Bytes], palette: Bytes) -> Iterator[Bytes]:
    """The index of the nearest colour of a palette for each pixel, uint8 [h, w] each.

    Pillow's own way rounds before it looks, which makes white a little grey.
    """
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    wide = palette.astype(np.float32)
    for picture in pictures:
        codes = _codes(picture)
        new = np.unique(codes[table[codes] == _UNKNOWN])
        for start in range(0, len(new), 1 << 16):
            part = new[start : start + (1 << 16)]
            colours = np.stack([part >> 16, part >> 8 & 255, part & 255], axis=1)
            # |c - p|^2 without |c|^2, which is the same for all p.
            distances = (wide**2).sum(axis=1) - 2 * colours.astype(np.float32) @ wide.T
            table[part] = distances.argmin(axis=1)
        yield table[codes]


def _codes(pixels: Bytes) -> NDArray[np.uint32]:
    """Each pixel [..., 3] as one number, 0xRRGGBB."""
    wide = pixels.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.uint32)


def encode_mp4(frames: Sequence[Bytes]) -> bytes:
    """Encodes frames uint8 [h, w, 3], h and w even, as H.264 in MP4, the last one held.

    It begins with its index, so that a browser can play it while it comes in, and is
    encoded anew, coarser, until it is small.
    """
    factor = _BEST_FACTOR
    mp4 = _encode_mp4(frames, factor)
    while len(mp4) > _MP4_BYTES and factor < _WORST_FACTOR:
        factor += 1 + math.ceil(6 * math.log2(len(mp4) / _MP4_BYTES))
        mp4 = _encode_mp4(frames, min(factor, _WORST_FACTOR))
    return mp4


def _encode_mp4(frames: Sequence[Bytes], factor: int) -> bytes:
    height, width = frames[0].shape[:2]
    held = FRAMES_PER_SECOND * HOLD_SECONDS - 1
    # A real file: to move the index to the front the muxer opens its output again.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": str(factor), "preset": "fast", "tune": "animation"}
            context = stream.codec_context
            context.thread_count = 1
            context.time_base = Fraction(1, FRAMES_PER_SECOND)
            # Named, for a player would guess by the size.
            context.colorspace = Colorspace.ITU709
            context.color_range = ColorRange.MPEG
            context.color_primaries = context.color_trc = 1
            for index in range(len(frames) + held):
                pixels = frames[min(index, len(frames) - 1)]
                picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
                picture = picture.reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                )
                picture.pts, picture.time_base = index, Fraction(1, FRAMES_PER_SECOND)
                container.mux(stream.encode(picture))
            container.mux(stream.encode(None))
        return path.read_bytes()
