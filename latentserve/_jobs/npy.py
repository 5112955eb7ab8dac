"""Reads npy files a few rows at a time, and makes the headers of npy files to write.

Files are not memory-mapped: the pages of a mapped file count as memory of the process, and the
process is killed if a mapped file is truncated.
"""

import io
import tokenize
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from latentserve._jobs.errors import SourceError
from latentserve._jobs.places import Place, Stamp, check_stamp, read_range, stamp_of

#: First bytes of every npy file.
MAGIC = b"\x93NUMPY"

#: Dtypes that a client can send; float64 is sent as float32.
DTYPES = tuple(map(np.dtype, (np.float64, np.float32, np.float16, np.uint8)))

#: What NumPy raises for a file that is damaged or of another format; it parses headers as Python.
UNREADABLE = (ValueError, EOFError, tokenize.TokenError)

# No header is longer: that of version 1.0 counts its bytes in two bytes.
_HEADER_BYTES = 2**16 + 16

_VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


@dataclass(frozen=True)
class NpyFile:
    """An npy file whose header has been read.

    Attributes:
        path: Path or URL of the file.
        dtype: Dtype of the array.
        shape: Shape of the array, whose first axis is the rows.
        data_offset: Bytes before the first element.
        stamp: Size, and time or stamp of the file when it was opened.
    """

    path: Place
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    data_offset: int
    stamp: Stamp = field(repr=False)

    @classmethod
    def open(cls, path: Place) -> "NpyFile":
        """Reads and checks the header of a file.

        Raises:
            OSError: The file cannot be read.
            SourceError: The file is truncated, is not an npy file of floats or uint8 in C order, or
                is in a store that does not state its size.
        """
        stamp = stamp_of(path)
        if stamp[0] < 0:
            raise SourceError(
                f"{path}: got no size from the store, wanted one, to read rows by their place; "
                "copy the file to this host"
            )
        file = io.BytesIO(read_range(path, 0, min(stamp[0], _HEADER_BYTES), stamp))
        try:
            version = npy.read_magic(file)
            shape, fortran_order, dtype = _VERSIONS[version](file)
        except (*UNREADABLE, KeyError) as error:
            raise SourceError(f"{path}: not a readable npy file") from error
        offset = file.tell()
        if dtype.newbyteorder("=") not in DTYPES:
            raise SourceError(f"{path}: got dtype {dtype}, wanted floats or uint8")
        if not shape:
            raise SourceError(f"{path}: got a single number, wanted a first axis of rows")
        # Both orders are the same unless two axes are longer than 1.
        if fortran_order and sum(length > 1 for length in shape) > 1:
            raise SourceError(
                f"{path}: got Fortran order, in which rows cannot be read one by one; "
                "wanted C order (save np.ascontiguousarray of it)"
            )
        wanted = offset + int(np.prod(shape, dtype=object)) * dtype.itemsize
        if stamp[0] < wanted:
            raise SourceError(f"{path}: got {stamp[0]} bytes, wanted {wanted}: it is truncated")
        return cls(path, dtype, tuple(shape), offset, stamp)

    @property
    def row_bytes(self) -> int:
        """Size of a row in bytes."""
        return int(np.prod(self.shape[1:], dtype=object)) * self.dtype.itemsize

    def check(self) -> None:
        """Checks that the file is the one that was opened, possibly by another process.

        Raises:
            OSError: The file cannot be read.
            SourceError: Its size, or its time or stamp differs.
        """
        check_stamp(self.path, self.stamp)

    def absolute(self) -> "NpyFile":
        """Returns the same file with an absolute path."""
        return replace(self, path=self.path.absolute())

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Reads the rows from `start` up to, but not including, `stop`.

        Raises:
            OSError: The file cannot be read.
            SourceError: The file was changed after it was opened.
        """
        begin = self.data_offset + start * self.row_bytes
        content = read_range(self.path, begin, begin + (stop - start) * self.row_bytes, self.stamp)
        return np.frombuffer(content, self.dtype).reshape(stop - start, *self.shape[1:])


def header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Returns the header of an npy file (version 1.0) whose elements are in C order.

    Made without NumPy, whose versions pad headers differently: shards must be byte-identical.
    """
    sizes = ", ".join(str(length) for length in shape) + ("," if len(shape) == 1 else "")
    text = f"{{'descr': '{dtype.str}', 'fortran_order': False, 'shape': ({sizes}), }}"
    length = len(MAGIC) + 2 + 2 + len(text) + 1
    padded = text + " " * (-length % 64) + "\n"
    return MAGIC + b"\x01\x00" + len(padded).to_bytes(2, "little") + padded.encode("ascii")
