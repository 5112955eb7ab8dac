"""Encodes the movie of a training, as GIF and as MP4."""

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

from training.report.data import Bytes

FRAMES_PER_SECOND = 10
#: Duration of the last frame.
HOLD_SECONDS = 2

_GIF_BYTES = 4_000_000
_GIF_WIDTHS = (800, 640, 480, 400)
# One less than a GIF may have: index 255 marks colours that have no palette entry yet.
_GIF_COLOURS = 255
_UNKNOWN = 255
_MP4_BYTES = 1_500_000
# Constant rate factors of x264: 18 is visually lossless, 45 is coarse, and an increase by 6
# about halves the size.
_BEST_FACTOR, _WORST_FACTOR = 23, 45


def encode_gif(frames: Sequence[Bytes]) -> bytes:
    """Encodes frames uint8 [h, w, 3] as a looping GIF that pauses on the last frame.

    All frames share one palette, so that colours do not flicker. The width is reduced until
    the file is small enough.
    """
    for width in _GIF_WIDTHS:
        gif = _encode_gif(frames, width)
        if len(gif) <= _GIF_BYTES:
            break
    return gif


def _encode_gif(frames: Sequence[Bytes], width: int) -> bytes:
    size = (width, round(width * frames[0].shape[0] / frames[0].shape[1]))
    small = [
        np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BOX)) for frame in frames
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
    """Makes a palette for all pictures [h, w, 3]: uint8 [at most _GIF_COLOURS, 3].

    Half of its entries are the most frequent colours, unchanged, so that the background stays
    white and the classes keep their colours. The other entries are quantised from the pixels of
    other colours.
    """
    pixels = np.concatenate([picture.reshape(-1, 3) for picture in pictures])
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
    """Maps the pixels of each picture to their nearest palette entries, uint8 [h, w].

    Pillow's own mapping rounds colours first, which makes white a little grey.
    """
    table = np.full(1 << 24, _UNKNOWN, np.uint8)
    wide = palette.astype(np.float32)
    for picture in pictures:
        codes = _codes(picture)
        new = np.unique(codes[table[codes] == _UNKNOWN])
        for start in range(0, len(new), 1 << 16):
            part = new[start : start + (1 << 16)]
            colours = np.stack([part >> 16, part >> 8 & 255, part & 255], axis=1)
            # |c - p|^2 minus |c|^2, which is the same for all palette entries p.
            distances = (wide**2).sum(axis=1) - 2 * colours.astype(np.float32) @ wide.T
            table[part] = distances.argmin(axis=1)
        yield table[codes]


def _codes(pixels: Bytes) -> NDArray[np.uint32]:
    """Packs pixels [..., 3] into numbers 0xRRGGBB, uint32 [...]."""
    wide = pixels.astype(np.uint32)
    return np.asarray(wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2], np.uint32)


def encode_mp4(frames: Sequence[Bytes]) -> bytes:
    """Encodes frames uint8 [h, w, 3], h and w even, as an H.264 MP4 that pauses on the last.

    The file begins with its index, so that a browser can play it while it loads. It is
    encoded again at lower quality until it is small enough.
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
    # Needs a file on disk, which the muxer reopens to move the index to the front.
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "movie.mp4"
        with av.open(str(path), "w", options={"movflags": "+faststart"}) as container:
            stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {"crf": str(factor), "preset": "fast", "tune": "animation"}
            context = stream.codec_context
            context.thread_count = 1
            context.time_base = Fraction(1, FRAMES_PER_SECOND)
            # Stated explicitly, since players otherwise guess the colour space by the size.
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
