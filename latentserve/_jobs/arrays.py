"""Sources of dataset jobs whose rows are those of files of arrays, read a few rows at a time."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentserve._jobs.errors import SourceError
from latentserve._jobs.layout import Numbers
from latentserve._jobs.npy import NpyFile
from latentserve._jobs.places import Place
from latentserve._jobs.sources import OnHashed

# Maximum size of the rows that are hashed at once.
_HASHED_BYTES = 4 * 2**20


class RowFile(Protocol):
    """A file whose rows have one dtype and shape, such as `NpyFile`.

    Attributes:
        path: Path or URL of the file.
        dtype: Dtype of the array.
        shape: Shape of the array, whose first axis is the rows.
    """

    @property
    def path(self) -> Place: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

    def check(self) -> None:
        """Checks that the file is the one that was opened, possibly by another process.

        Raises:
            OSError: The file cannot be read.
            SourceError: Its size, or its time or stamp, differs.
        """

    def absolute(self) -> "RowFile":
        """Returns the same file with an absolute path."""

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Reads the rows from `start` up to, but not including, `stop`.

        Raises:
            OSError: The file cannot be read.
            SourceError: The file was changed after it was opened.
        """


@dataclass(frozen=True)
class Part:
    """Rows of one shape: those of files, one file after another.

    Attributes:
        files: The files; their rows have the same dtype and shape.
        rows: Number of each row in the source.
    """

    files: tuple[RowFile, ...]
    rows: Numbers

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.files[0].shape[1:]

    @property
    def name(self) -> str:
        """Path of the first file, for messages."""
        return str(self.files[0].path)

    def batches(self, start: int, stop: int, max_rows: int) -> Iterator[NDArray[Any]]:
        """Reads the rows from `start` up to, but not including, `stop`.

        Args:
            start: Index of the first row in this part.
            stop: Index of the row after the last one.
            max_rows: Maximum number of rows per batch; no batch spans two files.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file was changed after it was opened.
        """
        begin = 0
        for file in self.files:
            first, last = max(start - begin, 0), min(stop - begin, file.shape[0])
            for low in range(first, last, max_rows):
                yield file.read(low, min(low + max_rows, last))
            begin += file.shape[0]


@dataclass(frozen=True)
class ArrayRows:
    """The rows of one shard: consecutive ones of a part.

    Attributes:
        files: The files that have them.
        start: Index of the first row, counted from the first row of the first file.
        rows: Number of rows.
    """

    files: tuple[RowFile, ...]
    start: int
    rows: int

    @classmethod
    def of(cls, part: Part, start: int, stop: int) -> "ArrayRows":
        """Rows of a part from `start` up to, but not including, `stop`."""
        files: list[RowFile] = []
        first = begin = 0
        for file in part.files:
            end = begin + file.shape[0]
            if begin < stop and end > start:
                first = first if files else begin
                files.append(file)
            begin = end
        return cls(tuple(files), start - first, stop - start)

    def check(self) -> None:
        """Checks that the files are those that were opened, possibly by another process.

        Raises:
            OSError: A file cannot be read.
            SourceError: The size, or the time or stamp, of a file differs.
        """
        for file in self.files:
            file.check()

    def absolute(self) -> "ArrayRows":
        """Returns the same rows, with absolute paths."""
        return replace(self, files=tuple(file.absolute() for file in self.files))

    def batches(self, start: int, stop: int, max_rows: int) -> Iterator[NDArray[Any]]:
        """Reads the rows of the shard from `start` up to, but not including, `stop`.

        Raises:
            OSError, SourceError: As from `Part.batches`.
        """
        part = Part(self.files, range(0))
        return part.batches(self.start + start, self.start + stop, max_rows)


@dataclass(frozen=True)
class Arrays:
    """Source whose rows are those of files of arrays.

    Attributes:
        parts: The rows of each shape, in the order in which the shapes appear.
        dtype: Dtype of all rows.
    """

    parts: tuple[Part, ...]
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, paths: Sequence[Place]) -> "Arrays":
        """Reads the headers of npy files; rows are numbered from file to file.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file is not an npy file of numbers, there are no rows, or the rows
                differ in dtype.
        """
        files = [NpyFile.open(path) for path in paths]
        ends = accumulate(file.shape[0] for file in files)
        numbers = [range(end - file.shape[0], end) for end, file in zip(ends, files, strict=True)]
        return cls.of(files, numbers)

    @classmethod
    def of(cls, files: Sequence[RowFile], numbers: Sequence[Sequence[int]]) -> "Arrays":
        """Groups files by the shape of their rows.

        Args:
            files: The files.
            numbers: Numbers of the rows of each file.

        Raises:
            SourceError: There are no rows, or the rows differ in dtype.
        """
        shapes: dict[tuple[int, ...], list[int]] = {}
        first = files[0]
        for index, file in enumerate(files):
            if file.dtype != first.dtype:
                raise unlike(file, first)
            if file.shape[0]:
                shapes.setdefault(file.shape[1:], []).append(index)
        if not shapes:
            raise SourceError(f"{first.path}: got no rows, wanted at least 1")
        if len(shapes) == 1:
            only = next(iter(shapes.values()))
            rows = range(sum(file.shape[0] for file in files))
            return cls(
                (Part(tuple(files[index] for index in only), rows),),
                first.dtype,
            )
        parts = []
        for indexes in shapes.values():
            joined = np.concatenate([np.array(numbers[index], np.int64) for index in indexes])
            parts.append(Part(tuple(files[index] for index in indexes), joined))
        return cls(tuple(parts), first.dtype)

    @property
    def rows(self) -> int:
        """Number of rows in all files."""
        return sum(len(part.rows) for part in self.parts)

    def identity(self, on_hashed: OnHashed) -> dict[str, Any]:
        """Hashes all rows; returns dtype, row shape or shapes, and SHA-256.

        Args:
            on_hashed: Called with the number of rows that have been hashed so far.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file was changed after it was opened.
        """
        digest, done = hashlib.sha256(), 0
        for part in self.parts:
            row_bytes = self.dtype.itemsize * int(np.prod(part.row_shape, dtype=object))
            piece = max(1, _HASHED_BYTES // max(1, row_bytes))
            for rows in part.batches(0, len(part.rows), piece):
                digest.update(rows.data)
                done += len(rows)
                on_hashed(done)
            if len(self.parts) > 1:
                digest.update(np.asarray(part.rows, "<i8").data)
        shapes = [list(part.row_shape) for part in self.parts]
        return {
            "dtype": self.dtype.str,
            **({"row_shape": shapes[0]} if len(shapes) == 1 else {"row_shapes": shapes}),
            "sha256": digest.hexdigest(),
        }


def unlike(file: RowFile, first: RowFile) -> SourceError:
    """The error of a file whose rows differ from those of another one in dtype or shape."""
    return SourceError(
        f"{file.path}: got {file.dtype} rows of shape {list(file.shape[1:])}, wanted "
        f"{first.dtype} of {list(first.shape[1:])} as in {first.path}"
    )
