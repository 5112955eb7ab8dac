"""Sources of dataset jobs: npy files or image files, read a few rows at a time.

The identity of a source is the SHA-256 of its content, independent of file names. It is
computed each time a job starts or resumes; that takes far less time than any model needs.
"""

import hashlib
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np

from latentserve._client.headers import PictureSize, is_picture, picture_size
from latentserve._jobs.errors import SourceError
from latentserve._jobs.layout import Numbers
from latentserve._jobs.npy import MAGIC
from latentserve._jobs.places import Place, RemoteFile, contents_of, name_in
from latentserve._walk import walk

# Maximum size of a batch that is sent.
_BATCH_BYTES = 2 * 2**20
_LOG = logging.getLogger("latentserve.jobs")
_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

AnyPlace = TypeVar("AnyPlace", bound=Place)

#: Called with the number of rows that have been hashed so far.
OnHashed = Callable[[int], None]


def image_files(paths: Sequence[AnyPlace]) -> list[AnyPlace]:
    """Replaces each folder in `paths` by the image files at any depth in it.

    The files of a folder are sorted by their paths within it. Links are followed, and hidden
    files are ignored. The log has the number of files of other types.

    Raises:
        OSError: A folder cannot be listed.
        SourceError: A folder has no image files, or has files or subfolders that cannot be read.
    """
    files: list[AnyPlace] = []
    for path in paths:
        if not path.is_dir():
            files.append(path)
            continue
        listing = path.listing(_SUFFIXES) if isinstance(path, RemoteFile) else walk(path, _SUFFIXES)
        for problem in listing.problems:
            raise SourceError(f"{path / problem.path}: {problem.reason}")
        ignored = listing.describe_ignored()
        if not listing.paths:
            found = f"; there are {ignored}" if ignored else ""
            raise SourceError(f"{path}: got a folder without PNG, JPEG and WebP files{found}")
        if ignored:
            wanted = ", ".join(_SUFFIXES)
            _LOG.warning("%s: ignored %s; wanted %s", path, ignored, wanted)
        files += [cast("AnyPlace", path / name) for name in listing.paths]
    return files


class Pictures:
    """Source whose rows are image files.

    Args:
        paths: Image files, and folders of them.

    Attributes:
        files: Path or URL of each file.
        sizes: Size of each file, None if its header cannot be read; filled by `identity`.
        root: The folder, if the source is one; names are relative to it then.

    Raises:
        SourceError: A folder has no image files.
    """

    def __init__(self, paths: Sequence[Place]):
        self.files = image_files(paths)
        self.sizes: list[PictureSize | None] = []
        self.root = paths[0] if len(paths) == 1 and paths[0].is_dir() else None
        self._digests: list[bytes] = []

    @property
    def rows(self) -> int:
        """Number of files."""
        return len(self.files)

    @property
    def name(self) -> str:
        """Path or URL of the folder, or of the first file, for messages."""
        return str(self.root or self.files[0])

    def names(self) -> list[str]:
        """Returns the name of each row's file: its path in the source folder, or as given."""
        root = self.root
        if root is None:
            return [str(file) for file in self.files]
        return [name_in(root, file) for file in self.files]

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
        for index, (file, content) in enumerate(contents_of(self.files)):
            if not is_picture(content):
                raise SourceError(f"{file}: {_described(content)}, wanted a PNG, JPEG or WebP file")
            self._digests.append(hashlib.sha256(content).digest())
            size = picture_size(content)
            self.sizes.append(seen.setdefault(size, size))
            on_hashed(index + 1)
        return {"files": self.rows, "sha256": hashlib.sha256(b"".join(self._digests)).hexdigest()}

    def cut(self, rows: Numbers) -> "PictureRows":
        """Returns the files with these indexes, after `identity` has read them."""
        return PictureRows(
            tuple(self.files[row] for row in rows), tuple(self._digests[row] for row in rows)
        )


@dataclass(frozen=True)
class PictureRows:
    """The rows of one shard: some of the files of `Pictures`.

    Attributes:
        files: Path or URL of each file.
        digests: SHA-256 of each file.
    """

    files: tuple[Place, ...]
    digests: tuple[bytes, ...]

    def check(self) -> None:
        """Does nothing: each file is checked when it is read."""

    def absolute(self) -> "PictureRows":
        """Returns the same files, with absolute paths."""
        return replace(self, files=tuple(file.absolute() for file in self.files))

    def batches(self, start: int, stop: int, max_rows: int) -> Iterator[list[bytes]]:
        """Reads files.

        Args:
            start: Index of the first file.
            stop: Index of the file after the last one.
            max_rows: Maximum number of files per batch; a batch of large files has fewer.

        Raises:
            OSError: A file cannot be read.
            SourceError: A file was changed after `Pictures.identity` read it.
        """
        batch: list[bytes] = []
        size = 0
        contents = contents_of(self.files[start:stop])
        for (file, content), digest in zip(contents, self.digests[start:stop], strict=True):
            if hashlib.sha256(content).digest() != digest:
                raise SourceError(f"{file}: was changed while it was being read")
            if batch and (len(batch) == max_rows or size + len(content) > _BATCH_BYTES):
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
    """Returns how many rows to send in a batch, so that request and reply are small.

    Args:
        row_shape: Shape of a float32 row of the request or the reply, whichever is larger.
        max_rows: Maximum number of rows per request.
    """
    row_bytes = 4 * int(np.prod(row_shape, dtype=object))
    return max(1, min(max_rows, 256, _BATCH_BYTES // max(1, row_bytes)))
