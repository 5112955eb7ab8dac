"""Checksums of picture files. Of the formats that are read, PNG alone has any.

Pillow checks those of the chunks before the pixels, not those of the pixels themselves.
"""

import zlib

_SIGNATURE_BYTES = 8
# Length and type before a chunk's content, checksum after it.
_HEAD_BYTES, _CHECKSUM_BYTES = 8, 4


def png_problem(raw: bytes) -> str | None:
    """Says how a PNG file is damaged; None if every chunk up to its end is whole.

    Bytes after the last chunk are ignored, as all decoders do.

    Args:
        raw: Content of the file, signature included.
    """
    view, start = memoryview(raw), _SIGNATURE_BYTES
    while start + _HEAD_BYTES <= len(raw):
        length = int.from_bytes(view[start : start + 4], "big")
        stop = start + _HEAD_BYTES + length
        if stop + _CHECKSUM_BYTES > len(raw):
            break
        kind = bytes(view[start + 4 : start + _HEAD_BYTES])
        # The length is not part of what is summed: a wrong one shows in the next chunk.
        if zlib.crc32(view[start + 4 : stop]).to_bytes(4, "big") != view[stop : stop + 4]:
            name = kind.decode("ascii", "backslashreplace")
            return f"the checksum of its {name} chunk is wrong"
        if kind == b"IEND":
            return None
        start = stop + _CHECKSUM_BYTES
    return "image file is truncated"
