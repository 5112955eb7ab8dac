"""Sources of dataset jobs: npy files or image files, read a few rows at a time.

The identity of a source is the SHA-256 of its content, independent of file names. It is
computed each time a job starts or resumes; that takes far less time than any model needs.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from latentserve._client.headers import PictureSize, is_picture, picture_size
from latentserve._jobs.npy import MAGIC, NpyFile, SourceError
from latentserve._jobs.plan import Numbers
from latentserve._walk import walk

# Maximum size of the rows that are hashed at once, and of a batch that is sent.
_HASHED_BYTES = 4 * 2**20
_BATCH_BYTES = 2 * 2**20
_LOG = logging.getLogger("latentserve.jobs")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

#: Called with the number of rows that have been hashed so far.
OnHashed = Callable[[int], None]


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Replaces each folder in `paths` by the image files at any depth in it.

    The files of a folder are sorted by their paths within it. Links are followed, and hidden
    files are ignored. The log has the number of files of other types.

    Raises:
        OSError: A folder cannot be listed.
        SourceError: A folder has no image files, or has files or subfolders that cannot be read.
    """
    files: list[Path] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        listing = walk(path, _SUFFIXES)
        for problem in listing.problems:
            raise SourceError(f"{path / problem.path}: {problem.reason}")
        ignored = listing.describe_ignored()
        if not listing.paths:
            found = f"; there are {ignored}" if ignored else ""
            raise SourceError(f"{path}: got a folder without PNG, JPEG and WebP files{found}")
        if ignored:
            wanted = ", ".join(_SUFFIXES)
            _LOG.warning("%s: ignored %s; wanted %s", path, ignored, wanted)
        files += [path / name for name in listing.paths]
    return files


class RowFile(Protocol):
    """A file whose rows have one dtype and shape, such as `NpyFile`.

    Attributes:
        path: Path of the file.
        dtype: Dtype of the array.
        shape: Shape of the array, whose first axis is the rows.
    """

    @property
    def path(self) -> Path: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
    @property
    def shape(self) -> tuple[int, ...]: ...

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
class Arrays:
    """Source whose rows are those of files of arrays.

    Attributes:
        parts: The rows of each shape, in the order in which the shapes appear.
        dtype: Dtype of all rows.
    """

    parts: tuple[Part, ...]
    dtype: np.dtype[Any]

    @classmethod
    def open(cls, paths: Sequence[Path]) -> "Arrays":
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
                raise SourceError(_unlike(file, first))
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

    def require_one_shape(self) -> Part:
        """Returns the only part.

        Raises:
            SourceError: The rows differ in shape.
        """
        if len(self.parts) > 1:
            raise SourceError(_unlike(self.parts[1].files[0], self.parts[0].files[0]))
        return self.parts[0]


class Pictures:
    """Source whose rows are image files.

    Args:
        paths: Image files, and folders of them.

    Attributes:
        files: Path of each file.
        sizes: Size of each file, None if its header cannot be read; filled by `identity`.

    Raises:
        SourceError: A folder has no image files.
    """

    def __init__(self, paths: Sequence[Path]):
        self.files = image_files(paths)
        self.sizes: list[PictureSize | None] = []
        # If the source is one folder, names are relative to it.
        self._root = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        self._digests: list[bytes] = []

    @property
    def rows(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def name(self) -> str:
        """Path of the folder, or of the first file, for messages."""
        return str(self._root or self.files[0])

    def names(self) -> list[str]:
        """Returns the name of each row's file: its path in the source folder, or as given."""
        root = self._root
        return [str(file.relative_to(root) if root else file) for file in self.files]

    def identity(self, on_hashed: OnHashed) -> dict[str, Any]:
        """Hashes all files and reads their sizes; returns their number and the SHA-256 of hashes.

        Args:
            on_hashed: Called with the number of files that have been hashed so far.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file is neither PNG nor JPEG nor WebP.
        """
        self._digests.clear()
        self.sizes.clear()
        seen: dict[PictureSize | None, PictureSize | None] = {}  # one object for each size
        for index, file in enumerate(self.files):
            content = file.read_bytes()
            if not is_picture(content):
                raise SourceError(f"{file}: {_described(content)}, wanted a PNG, JPEG or WebP file")
            self._digests.append(hashlib.sha256(content).digest())
            size = picture_size(content)
            self.sizes.append(seen.setdefault(size, size))
            on_hashed(index + 1)
        return {"files": self.rows, "sha256": hashlib.sha256(b"".join(self._digests)).hexdigest()}

    def batches(self, rows: Numbers, max_rows: int) -> Iterator[list[bytes]]:
        """Reads files.

        Args:
            rows: Indexes of the files.
            max_rows: Maximum number of files per batch; a batch of large files has fewer.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file was changed after `identity` read it.
        """
        batch: list[bytes] = []
        size = 0
        for index in rows:
            content = self.files[index].read_bytes()
            if hashlib.sha256(content).digest() != self._digests[index]:
                raise SourceError(f"{self.files[index]}: was changed while it was being read")
            if batch and (len(batch) == max_rows or size + len(content) > _BATCH_BYTES):
                yield batch
                batch, size = [], 0
            batch.append(content)
            size += len(content)
        if batch:
            yield batch


def _unlike(file: RowFile, first: RowFile) -> str:
    return (
        f"{file.path}: got {file.dtype} rows of shape {list(file.shape[1:])}, wanted "
        f"{first.dtype} of {list(first.shape[1:])} as in {first.path}"
    )


def _described(content: bytes) -> str:
    if not content:
        return "got an empty file"
    return "got an npy file" if content.startswith(MAGIC) else "got something else"


def rows_that_fit(row_shape: Sequence[int], max_rows: int) -> int:
    """Returns how many rows to send in a batch, so that request and reply are small.

    Args:
        row_shape: Shape of a float32 row of the request or the reply, whichever is larger.
        max_rows: Maximum number of rows per request.
    """
    row_bytes = 4 * int(np.prod(row_shape, dtype=object))
    return max(1, min(max_rows, 256, _BATCH_BYTES // max(1, row_bytes)))
