"""Reads the size of a picture from the header of its file; pixels are not decoded."""

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_PNG = b"\x89PNG\r\n\x1a\n"
_JPEG = b"\xff\xd8\xff"
_RIFF, _WEBP = b"RIFF", b"WEBP"
_EXIF = b"Exif\x00\x00"
_XMP = b"http://ns.adobe.com/xap/1.0/\x00"

# Markers of JPEG: start of frame (with the size), start of scan, and application segment 1.
_FRAMES = frozenset(
    (*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0))
)
_SCAN, _APP1 = 0xDA, 0xE1
_ALONE = frozenset((0x01, *range(0xD0, 0xD9)))  # markers without a segment

_ORIENTATION = 0x0112
_SIDEWAYS = range(5, 9)  # orientations that swap height and width
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([0-9])')


@dataclass(frozen=True)
class PictureSize:
    """Size of a picture file.

    Attributes:
        height: Height of the stored pixels.
        width: Width of the stored pixels.
        sideways: Whether the EXIF orientation swaps both, as `resize` does first.
    """

    height: int
    width: int
    sideways: bool = False

    @property
    def upright(self) -> tuple[int, int]:
        """Height and width once the picture is turned upright."""
        return (self.width, self.height) if self.sideways else (self.height, self.width)


def is_picture(content: bytes) -> bool:
    """Whether a file's content begins with the signature of PNG, JPEG or WebP."""
    return content.startswith((_PNG, _JPEG)) or _is_webp(content)


def picture_size(content: bytes) -> PictureSize | None:
    """Reads the size of a PNG, JPEG or WebP file.

    Args:
        content: Content of the file.

    Returns:
        The size; None if the header is damaged or of another format.
    """
    try:
        if content.startswith(_PNG):
            return _png(content)
        if content.startswith(_JPEG):
            return _jpeg(content)
        if _is_webp(content):
            return _webp(content)
    except (struct.error, IndexError, ValueError):
        pass  # truncated
    return None


def _is_webp(content: bytes) -> bool:
    return content.startswith(_RIFF) and content[8:12] == _WEBP


def _png(content: bytes) -> PictureSize | None:
    size: tuple[int, int] | None = None
    turn = xmp = 0
    for kind, start, length in _png_chunks(content):
        if kind == b"IHDR":
            width, height = struct.unpack_from(">II", content, start)
            size = height, width
        elif kind == b"eXIf":
            turn = _exif_orientation(content[start : start + length])
        elif kind == b"iTXt" and content.startswith(b"XML:com.adobe.xmp\x00", start):
            xmp = _xmp_orientation(content[start : start + length])
    return None if size is None else PictureSize(*size, (turn or xmp) in _SIDEWAYS)


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields type, start and length of the data of each chunk."""
    at = len(_PNG)
    while at + 8 <= len(content):
        (length,) = struct.unpack_from(">I", content, at)
        yield content[at + 4 : at + 8], at + 8, length
        at += 12 + length


def _jpeg(content: bytes) -> PictureSize | None:
    size: tuple[int, int] | None = None
    turn, xmp, at = 0, 0, 2
    while True:
        # Bytes between segments are skipped, as decoders do.
        at = content.index(b"\xff", at)
        while content[at] == 0xFF:
            at += 1
        marker = content[at]
        at += 1
        if marker == 0 or marker in _ALONE:
            continue
        if marker == _SCAN:
            return None if size is None else PictureSize(*size, (turn or xmp) in _SIDEWAYS)
        (length,) = struct.unpack_from(">H", content, at)
        if marker in _FRAMES:
            height, width = struct.unpack_from(">HH", content, at + 3)
            size = height, width
        elif marker == _APP1 and content.startswith(_EXIF, at + 2):
            turn = turn or _exif_orientation(content[at + 2 + len(_EXIF) : at + length])
        elif marker == _APP1 and content.startswith(_XMP, at + 2):
            xmp = _xmp_orientation(content[at + 2 : at + length])
        at += length


def _webp(content: bytes) -> PictureSize | None:
    size: tuple[int, int] | None = None
    turn, xmp, at = 0, 0, 12
    while at + 8 <= len(content):
        kind = content[at : at + 4]
        (length,) = struct.unpack_from("<I", content, at + 4)
        start = at + 8
        if size is None:
            size = _webp_size(content, kind, start)
        if kind == b"EXIF":
            turn = _exif_orientation(content[start : start + length].removeprefix(_EXIF))
        elif kind == b"XMP ":
            xmp = _xmp_orientation(content[start : start + length])
        at = start + length + length % 2
    return None if size is None else PictureSize(*size, (turn or xmp) in _SIDEWAYS)


def _webp_size(content: bytes, kind: bytes, start: int) -> tuple[int, int] | None:
    if kind == b"VP8X":  # the canvas: 24 bits each of width - 1 and height - 1
        canvas = content[start + 4 : start + 10]
        if len(canvas) < 6:
            return None
        return 1 + int.from_bytes(canvas[3:], "little"), 1 + int.from_bytes(canvas[:3], "little")
    if kind == b"VP8 ":  # a frame tag, a start code, and 14 bits each of width and height
        width, height = struct.unpack_from("<HH", content, start + 6)
        return height & 0x3FFF, width & 0x3FFF
    if kind == b"VP8L":  # a signature, and 14 bits each of width - 1 and height - 1
        (bits,) = struct.unpack_from("<I", content, start + 1)
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return None


def _exif_orientation(exif: bytes) -> int:
    """Returns the orientation of a TIFF structure; 0 if it has none or is damaged."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None:
        return 0
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (entries,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(at + 2, at + 2 + 12 * entries, 12):
            tag, kind = struct.unpack_from(f"{order}HH", exif, entry)
            if tag == _ORIENTATION:
                value = struct.unpack_from(f"{order}{'I' if kind == 4 else 'H'}", exif, entry + 8)
                return int(value[0])
    except struct.error:
        pass
    return 0


def _xmp_orientation(xmp: bytes) -> int:
    """Returns the orientation of an XMP packet; 0 if it has none."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 0
