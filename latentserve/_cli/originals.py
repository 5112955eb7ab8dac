"""The pixels of images that were given, to lay them beside what became of them.

The client has no picture library. It reads the PNG files that a model takes as they
are (8 bits, grey or RGB); the server reads all others.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._cli.png import BACKGROUND

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3}  # of the colour types grey and RGB


def originals(
    values: NDArray[Any] | list[bytes], shape: tuple[int, ...]
) -> tuple[NDArray[np.uint8], int]:
    """Turns images as they were given into pixels.

    Args:
        values: An array of any shape that a client takes, or the contents of files.
        shape: N, C, H and W.

    Returns:
        uint8 [N, C, H, W], blank where a file cannot be drawn, and how many are.
    """
    if not isinstance(values, list):
        pixels = values.reshape(shape)
        if pixels.dtype != np.uint8:
            pixels = np.rint(pixels.astype(np.float32) * np.float32(255)).astype(np.uint8)
        return pixels, 0
    sheet = np.full(shape, BACKGROUND, np.uint8)
    missing = 0
    for index, content in enumerate(values):
        drawn = _read_png(content)
        if drawn is None or drawn.shape != shape[1:]:
            missing += 1
        else:
            sheet[index] = drawn
    return sheet, missing


def _read_png(content: bytes) -> NDArray[np.uint8] | None:
    """Reads a plain PNG file, uint8 [C, H, W]; None of any other file."""
    try:
        chunks = list(_chunks(content))
        width, height, depth, colour, _, _, interlaced = struct.unpack(">IIBBBBB", chunks[0][1])
        if depth != 8 or colour not in _CHANNELS or interlaced:
            return None
        channels = _CHANNELS[colour]
        packed = b"".join(data for kind, data in chunks if kind == b"IDAT")
        # The server took it: no more is unpacked than the picture has.
        size = height * (1 + width * channels)
        lines = np.frombuffer(zlib.decompressobj().decompress(packed, size), np.uint8)
        pixels = _unfiltered(lines.reshape(height, -1), channels)
        return pixels.reshape(height, width, channels).transpose(2, 0, 1)
    except (struct.error, zlib.error, ValueError, KeyError, IndexError):
        return None


def _chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    if not content.startswith(_SIGNATURE):
        raise ValueError("no PNG file")
    start = len(_SIGNATURE)
    while start < len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        yield kind, content[start + 8 : start + 8 + length]
        start += 12 + length


def _unfiltered(lines: NDArray[np.uint8], step: int) -> NDArray[np.uint8]:
    """Undoes the filter of each scan line (ISO/IEC 15948, 9.2).

    Args:
        lines: uint8 [H, 1 + W * C], each with the number of its filter in front.
        step: C, how far back the pixel before lies.

    Raises:
        KeyError: There is no such filter.
    """
    before = np.zeros(lines.shape[1] - 1, np.uint8)
    pixels = np.empty((len(lines), len(before)), np.uint8)
    for row, line in enumerate(lines):
        kind, data = int(line[0]), line[1:]
        if kind in (0, 2):  # of none, or the line above: all at once
            before = data + before if kind else data
        else:
            predict = {1: _left, 3: _average, 4: _paeth}[kind]
            above, current = before.tolist(), data.tolist()
            for index in range(len(current)):
                left = current[index - step] if index >= step else 0
                corner = above[index - step] if index >= step else 0
                current[index] = (current[index] + predict(left, above[index], corner)) & 255
            before = np.array(current, np.uint8)
        pixels[row] = before
    return pixels


def _left(left: int, _above: int, _corner: int) -> int:
    return left


def _average(left: int, above: int, _corner: int) -> int:
    return (left + above) // 2


def _paeth(left: int, above: int, corner: int) -> int:
    """Whichever of the three is nearest to left + above - corner."""
    guess = left + above - corner
    return min((left, above, corner), key=lambda each: abs(guess - each))
