"""The IDX file format of MNIST and data sets like it.

Format: http://yann.lecun.com/exdb/mnist/ (two zero bytes, a type code, the number
of axes, one big-endian uint32 per axis, then the elements in C order).
"""

import gzip
import hashlib
import math
import mmap
import os
import struct
import zlib
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentserve._files import reason
from training.data.checks import Progress, file_sha256, silent
from training.errors import DataError, DataMissing

_UINT8 = 0x08
_GZIP_MAGIC = b"\x1f\x8b"


def unpack(raw: bytes, origin: str) -> bytes:
    """Decompresses the content of a file if it is gzipped, else returns it unchanged.

    Args:
        raw: Content of the file.
        origin: Path or name of the file, for the error message.

    Raises:
        DataError: The gzip stream is damaged.
    """
    if not raw.startswith(_GZIP_MAGIC):
        return raw
    try:
        return gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{origin}: damaged gzip file ({error})") from error


def parse_idx(raw: bytes | memoryview, origin: str) -> NDArray[np.uint8]:
    """Reads one IDX array of unsigned bytes.

    Args:
        raw: The file's content, uncompressed, in memory or mapped.
        origin: Path or name of the file, for the error message.

    Returns:
        A view, uint8, read-only, of the shape in the header.

    Raises:
        DataError: The magic number, the element type or the length is wrong.
    """
    if len(raw) < 4 or raw[:2] != b"\0\0":
        raise DataError(f"{origin}: not an IDX file (starts with {bytes(raw[:4])!r})")
    if raw[2] != _UINT8:
        raise DataError(f"{origin}: element type 0x{raw[2]:02x}, wanted 0x08 (unsigned byte)")
    axes = raw[3]
    header = 4 + 4 * axes
    if axes == 0 or len(raw) < header:
        raise DataError(f"{origin}: the header is cut short")
    shape = struct.unpack(f">{axes}I", raw[4:header])
    wanted = header + math.prod(shape)
    if len(raw) != wanted:
        raise DataError(f"{origin}: {len(raw)} bytes, wanted {wanted} for shape {list(shape)}")
    try:
        return np.frombuffer(raw, np.uint8, offset=header).reshape(shape)
    except ValueError as error:  # more axes, or larger ones, than NumPy supports
        raise DataError(f"{origin}: shape {list(shape)} is not supported ({error})") from error


def open_idx(path: Path, progress: Progress = silent) -> tuple[NDArray[np.uint8], str]:
    """Maps the array of a file into memory, or decompresses it there if it is gzipped.

    Args:
        path: The file.
        progress: Called while its checksum is computed.

    Returns:
        The array, uint8, read-only, and the SHA-256 of the file's uncompressed content.

    Raises:
        DataMissing: The file does not exist.
        DataError: The file cannot be read, or is damaged.
    """
    try:
        with path.open("rb") as file:
            if file.read(2) == _GZIP_MAGIC:
                raw = unpack(_GZIP_MAGIC + file.read(), str(path))
                return parse_idx(raw, str(path)), hashlib.sha256(raw).hexdigest()
            empty = file.seek(0, os.SEEK_END) == 0
            mapped = b"" if empty else mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        array = parse_idx(memoryview(mapped), str(path))
        return array, file_sha256(path, len(array), progress)
    except FileNotFoundError as error:
        raise DataMissing(f"{path}: {error.strerror}") from error
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
