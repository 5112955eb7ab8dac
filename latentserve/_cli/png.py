"""Arranges images in a grid and encodes it as a PNG file, without an imaging library.

The client depends only on grpcio, protobuf and numpy.
"""

import math
import struct
import zlib

import numpy as np
from numpy.typing import NDArray

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_GREY, _RGB = 0, 2

#: Grey value around and between images, and that of coloured ones with light edges.
BACKGROUND, PAPER = 48, 255
#: Width of the lines around and between images, in pixels before the zoom.
GAP = 2
# Most pixels of a sheet: more would take several gigabytes, and few programs would open it.
_MOST_PIXELS = 2**30


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encodes one image as a PNG file (ISO/IEC 15948).

    Args:
        pixels: uint8 [H, W] for grey or [H, W, 3] for RGB.

    Raises:
        ValueError: `pixels` has another shape.
    """
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] != 3):
        raise ValueError(f"pixels: got shape {list(pixels.shape)}, wanted [H, W] or [H, W, 3]")
    height, width = pixels.shape[:2]
    colour = _GREY if pixels.ndim == 2 else _RGB
    # Each scan line begins with its filter type; 0 means no filter.
    lines = np.zeros((height, 1 + pixels[0].size), np.uint8)
    lines[:, 1:] = pixels.reshape(height, -1)
    return b"".join(
        (
            _SIGNATURE,
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0)),
            _chunk(b"IDAT", zlib.compress(lines.tobytes(), 9)),
            _chunk(b"IEND", b""),
        )
    )


def background_of(images: NDArray[np.uint8]) -> int:
    """Grey value to lay images on: dark lines between icons on white would be all one sees.

    Args:
        images: uint8 [N, C, H, W].

    Returns:
        `PAPER` if the images are RGB and most of their edges' values are light, else `BACKGROUND`.
    """
    if images.shape[1] != 3:
        return BACKGROUND
    edges = (images[:, :, [0, -1]], images[:, :, :, [0, -1]])
    light = [int((edge >= 128).sum()) for edge in edges]
    return PAPER if 2 * sum(light) > sum(edge.size for edge in edges) else BACKGROUND


def grid(
    images: NDArray[np.uint8],
    columns: int | None = None,
    gap: int = GAP,
    zoom: int = 1,
    background: int = BACKGROUND,
) -> NDArray[np.uint8]:
    """Arranges images in rows, left to right and top to bottom.

    Args:
        images: uint8 [N, C, H, W], N at least 1, C = 1 or 3.
        columns: Images per row; a nearly square grid by default.
        gap: Width of the lines around and between images, in pixels before the zoom.
        zoom: Enlargement factor of the grid.
        background: Grey value of the lines.

    Returns:
        uint8 [H', W'] for C = 1, or [H', W', 3] for C = 3, as for `encode_png`.

    Raises:
        ValueError: There are no images, they do not have 1 or 3 channels, or the sheet would have
            more than 2^30 pixels.
    """
    if images.ndim != 4 or len(images) == 0 or images.shape[1] not in (1, 3):
        raise ValueError(f"images: got shape {list(images.shape)}, wanted [N, 1 or 3, H, W]")
    count, channels, height, width = images.shape
    columns = min(count, columns or math.ceil(math.sqrt(count)))
    rows = math.ceil(count / columns)
    size = rows * (height + gap) + gap, columns * (width + gap) + gap
    if zoom**2 * math.prod(size) > _MOST_PIXELS:
        raise ValueError(
            f"images: got a sheet of {zoom * size[0]} by {zoom * size[1]} pixels, wanted at most "
            "2^30 in all"
        )
    sheet = np.full((*size, channels), background, np.uint8)
    for index, image in enumerate(images):
        top = gap + (index // columns) * (height + gap)
        left = gap + (index % columns) * (width + gap)
        sheet[top : top + height, left : left + width] = image.transpose(1, 2, 0)
    sheet = sheet.repeat(zoom, axis=0).repeat(zoom, axis=1)
    return sheet[:, :, 0] if channels == 1 else sheet


def _chunk(name: bytes, content: bytes) -> bytes:
    checksum = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
