"""What a dataset job reads: rows of npy files, or image files, a few at a time.

A source has an identity that does not depend on paths: the SHA-256 of its content. It
is read once more for that when a job begins or goes on, far faster than any model
could take it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._jobs.npy import MAGIC, NpyFile, SourceError

# Most bytes to hold at once, of a file that is hashed and of a batch that is sent.
_HASHED_BYTES = 4 * 2**20
_BATCH_BYTES = 2 * 2**20
_SUFFIXES = (".png", ".jpg", ".jpeg")
_PICTURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff")

Seen = Callable[[int], None]


def is_picture(content: bytes) -> bool:
    """Whether a file begins as PNG and JPEG files do."""
    return content.startswith(_PICTURES)


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Puts the image files of each folder, at any depth, in the place of the folder.

    Those of a folder are sorted by name; hidden ones are left out.

    Raises:
        SourceError: A folder has none.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        inside = [
            each
            for each in path.rglob("*")
            if each.suffix.lower() in _SUFFIXES
            and not any(part.startswith(".") for part in each.relative_to(path).parts)
        ]
        if not inside:
            raise SourceError(f"{path}: got a folder without PNG and JPEG files")
        files += sorted(inside, key=lambda each: each.relative_to(path).as_posix())
    return files


@dataclass(frozen=True)
class Arrays:
    """Rows of npy files, one file after the other.

    Attributes:
        files: Of one dtype and one shape of rows.
    """

    files: tuple[NpyFile, ...]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "Arrays":
        """Reads the headers.

        Raises:
            OSError: A file cannot be read.
            SourceError: One is no npy file of numbers, or they do not fit together.
        """
        files = tuple(NpyFile.open(path) for path in paths)
        first = files[0]
        for file in files:
            if (file.dtype, file.shape[1:]) != (first.dtype, first.shape[1:]):
                raise SourceError(
                    f"{file.path}: got {file.dtype} rows of shape {list(file.shape[1:])}, wanted "
                    f"{first.dtype} of {list(first.shape[1:])} as in {first.path}"
                )
        if not any(file.shape[0] for file in files):
            raise SourceError(f"{first.path}: got no rows, wanted at least 1")
        return cls(files)

    @property
    def rows(self) -> int:
        """How many, all files together."""
        return sum(file.shape[0] for file in self.files)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of the elements."""
        return self.files[0].dtype

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Of one row."""
        return self.files[0].shape[1:]

    @property
    def name(self) -> str:
        """Names the first file, for messages."""
        return str(self.files[0].path)

    def identity(self, seen: Seen) -> dict[str, Any]:
        """Reads it all and tells what it is, whatever the files are called.

        Args:
            seen: Told the number of rows that were read so far.
        """
        digest, done = hashlib.sha256(), 0
        piece = max(1, _HASHED_BYTES // max(1, self.files[0].row_bytes))
        for rows in self.batches(0, self.rows, piece):
            digest.update(rows.data)
            done += len(rows)
            seen(done)
        return {
            "dtype": self.dtype.str,
            "row_shape": list(self.row_shape),
            "sha256": digest.hexdigest(),
        }

    def batches(self, start: int, stop: int, most: int) -> Iterator[NDArray[Any]]:
        """Reads rows [start, stop), at most so many at a time, never across two files.

        Raises:
            OSError: A file cannot be read.
            SourceError: One was changed meanwhile.
        """
        begin = 0
        for file in self.files:
            first, last = max(start - begin, 0), min(stop - begin, file.shape[0])
            for low in range(first, last, most):
                yield file.read(low, min(low + most, last))
            begin += file.shape[0]


class Pictures:
    """Image files, one row each.

    Args:
        paths: Files, and folders of files.

    Raises:
        SourceError: A folder has no image files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.files = image_files(paths)
        # What a path is told from: one folder stands for itself.
        self._root = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        self._digests: list[bytes] = []

    @property
    def rows(self) -> int:
        """How many files."""
        return len(self.files)

    def names(self) -> list[str]:
        """The file of each row: its path in the folder, or as it was given."""
        root = self._root
        return [str(file.relative_to(root) if root else file) for file in self.files]

    def identity(self, seen: Seen) -> dict[str, Any]:
        """Reads it all and tells what it is, whatever the files are called.

        Args:
            seen: Told the number of files that were read so far.

        Raises:
            OSError: A file cannot be read.
            SourceError: One is neither PNG nor JPEG.
        """
        self._digests.clear()
        for index, file in enumerate(self.files):
            content = file.read_bytes()
            if not is_picture(content):
                raise SourceError(f"{file}: {_described(content)}, wanted a PNG or JPEG file")
            self._digests.append(hashlib.sha256(content).digest())
            seen(index + 1)
        return {"files": self.rows, "sha256": hashlib.sha256(b"".join(self._digests)).hexdigest()}

    def batches(self, start: int, stop: int, most: int) -> Iterator[list[bytes]]:
        """Reads files [start, stop), at most so many at a time, fewer where they are large.

        Raises:
            OSError: A file cannot be read.
            SourceError: One was changed since `identity` read it.
        """
        batch: list[bytes] = []
        size = 0
        for index in range(start, stop):
            content = self.files[index].read_bytes()
            if hashlib.sha256(content).digest() != self._digests[index]:
                raise SourceError(f"{self.files[index]}: was changed while it was being read")
            if batch and (len(batch) == most or size + len(content) > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(content)
            size += len(content)
        if batch:
            yield batch


def _described(content: bytes) -> str:
    if not content:
        return "got an empty file"
    return "got an npy file" if content.startswith(MAGIC) else "got something else"


def rows_that_fit(row_shape: Sequence[int], max_rows: int) -> int:
    """How many rows to send at a time: few enough that they and their reply are small.

    Args:
        row_shape: Of the larger of both, as float32.
        max_rows: Most that the server takes.
    """
    row_bytes = 4 * int(np.prod(row_shape, dtype=object))
    return max(1, min(max_rows, 256, _BATCH_BYTES // max(1, row_bytes)))
