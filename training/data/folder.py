"""A folder of pictures as a source.

Its subfolders are the classes; without subfolders there are no labels. The folder is
walked to any depth and symbolic links are followed, except back into a folder that
contains them. Hidden files and those of other types (`Thumbs.db`, `notes.txt`) are
ignored.
"""

import functools
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.pictures import SUFFIXES
from latentserve._files import reason
from latentserve._walk import Listing, walk
from training.data.download import Report
from training.data.pictures import Contents, Item, decode_file
from training.data.spec import DataSpec
from training.data.splits import refuse_too_few, split_by_hash, split_key
from training.errors import DataError, DataMissing


class FolderSource:
    """The pictures of a folder, sorted by path.

    Args:
        spec: A `folder:PATH`.
        report: Called with a line about files that are ignored.

    Attributes:
        spec: As above.
        problems: Broken links, and subfolders that cannot be listed.

    Raises:
        DataMissing: There is no such folder.
        DataError: It cannot be listed, has no pictures, or only some are in subfolders.
    """

    def __init__(self, spec: DataSpec, report: Report):
        self.spec = spec
        listing = _find(spec.path)
        self.problems = listing.problems
        self._paths = listing.paths
        self._labelled = _labelled(spec.path, listing.paths)
        # A stat of each file takes a few microseconds, reading it much longer.
        self._states = [_state(spec.path / path) for path in listing.paths]
        if listing.others:
            report(f"ignored {listing.describe_ignored()}")

    def __len__(self) -> int:
        return len(self._paths)

    def state(self) -> str:
        """A hash of the files' paths, sizes and times."""
        digest = hashlib.sha256()
        for path, (size, time) in zip(self._paths, self._states, strict=True):
            digest.update(os.fsencode(path) + f"\0{size} {time}\n".encode())
        for problem in self.problems:
            digest.update(os.fsencode(problem.path) + b"\0\n")
        return digest.hexdigest()

    def items(self) -> Iterator[Item]:
        """The pictures in order of their paths."""
        for path, (size, _) in zip(self._paths, self._states, strict=True):
            read = (self.spec.path / path).read_bytes
            yield Item(path, size, functools.partial(decode_file, self.spec, read))

    def contents(self, usable: Sequence[int], digest: str) -> Contents:
        """Classes by subfolder, splits by a hash of the path.

        Raises:
            DataError: There are too few, or a subfolder's name is not UTF-8.
        """
        refuse_too_few(self.spec.origin, len(usable))
        paths = [self._paths[index] for index in usable]
        labels, names = self._classes(paths)
        folder = self.spec.path
        for name in names:
            try:
                name.encode()
            except UnicodeEncodeError as error:  # it is written into JSON, which is UTF-8
                raise DataError(f"{folder}: the class {name!r}, wanted a name in UTF-8") from error
        splits = split_by_hash(paths, labels)
        # Otherwise a run that split them by their whole paths alone would count as one of this
        # data.
        if any(split_key(path) != path for path in paths):
            digest = hashlib.sha256(f"@ {digest}".encode()).hexdigest()
        if len(splits[0]) != len(split_by_hash(paths)[0]):
            digest = hashlib.sha256(f"/ {digest}".encode()).hexdigest()
        return Contents(labels, splits, names, {folder.name or str(folder): digest})

    def _classes(self, paths: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class of each picture, int64 [N], and the names of the classes."""
        if not self._labelled:
            return np.zeros(len(paths), np.int64), ()
        classes = [path.partition("/")[0] for path in paths]
        names = tuple(sorted(set(classes)))
        index_of = {name: index for index, name in enumerate(names)}
        return np.array([index_of[name] for name in classes], np.int64), names


def _find(folder: Path) -> Listing:
    """Lists the files below a folder, sorted by path.

    Raises:
        DataMissing: There is no such folder.
        DataError: The folder cannot be listed, or has no files named like pictures.
    """
    try:
        listing = walk(folder, SUFFIXES)
    except FileNotFoundError as error:
        raise DataMissing(f"{folder}: there is no such folder") from error
    except OSError as error:
        raise DataError(f"{folder}: {reason(error)}") from error
    if not listing.paths and not listing.problems:
        others = listing.describe_ignored()
        raise DataError(
            f"{folder}: no images, wanted files named {', '.join(sorted(SUFFIXES))}"
            + (f"; there are {others}" if others else "")
        )
    return listing


def _labelled(folder: Path, paths: Sequence[str]) -> bool:
    """Whether the pictures are in subfolders, which are their classes.

    Raises:
        DataError: Only some of the pictures are in subfolders.
    """
    outside = sum("/" not in path for path in paths)
    if 0 < outside < len(paths):
        raise DataError(
            f"{folder}: {outside} images are outside its subfolders and {len(paths) - outside} in "
            "them; wanted all in subfolders, one for each class, or none"
        )
    return outside == 0


def _state(path: Path) -> tuple[int, int]:
    """Size of a file, and when it was changed, in nanoseconds; 0 of one that has gone."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0
    return found.st_size, found.st_mtime_ns
