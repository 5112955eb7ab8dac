"""A folder of pictures as a source, on disk or in object storage.

Its subfolders are the classes; without subfolders there are no labels. The folder is
walked to any depth and symbolic links are followed, except back into a folder that
contains them. Hidden files and those of other types (`Thumbs.db`, `notes.txt`) are
ignored.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from common.pictures import SUFFIXES
from latentserve._files import reason
from latentserve._walk import Listing, walk
from training.data.download import Report
from training.data.objects import list_objects
from training.data.pictures import Contents, Item, decode_file
from training.data.spec import DataSpec
from training.data.splits import refuse_too_few, split_by_hash, split_key
from training.errors import DataError, DataMissing

# Requests to a store at a time: each waits for the network most of the time. S3's client has ten
# connections by default.
_REQUESTS = 32


@dataclass(frozen=True)
class _Folder:
    """What is in a folder.

    Attributes:
        listing: Its files.
        states: Of each picture, its size in bytes and what changes with its content: its time, or
            the stamp of the store.
        read: Reads the file of a path.
        at_a_time: Number of pictures to read at a time; None for one per CPU.
    """

    listing: Listing
    states: list[tuple[int, int | str]]
    read: Callable[[str], bytes]
    at_a_time: int | None


class FolderSource:
    """The pictures of a folder, sorted by path.

    Args:
        spec: A `folder:PATH`, or the URL of a folder in object storage.
        report: Called with a line about files that are ignored.

    Attributes:
        spec: As above.
        problems: Broken links, and subfolders that cannot be listed.
        at_a_time: As in `PictureSource`.

    Raises:
        ConfigError: A package that the store needs is not installed.
        DataMissing: There is no such folder, or the store cannot be reached.
        DataError: It cannot be listed, has no pictures, or only some are in subfolders.
    """

    def __init__(self, spec: DataSpec, report: Report):
        self.spec = spec
        found = _in_store(spec.origin) if spec.urls else _on_disk(spec.path)
        listing = found.listing
        _refuse_none(spec.origin, listing)
        self.problems = listing.problems
        self.at_a_time = found.at_a_time
        self._paths = listing.paths
        self._states = found.states
        self._read = found.read
        self._labelled = _labelled(spec.origin, listing.paths)
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
            read = functools.partial(self._read, path)
            yield Item(path, size, functools.partial(decode_file, self.spec, read))

    def contents(self, usable: Sequence[int], digest: str) -> Contents:
        """Classes by subfolder, splits by a hash of the path.

        Raises:
            DataError: There are too few, or a subfolder's name is not UTF-8.
        """
        refuse_too_few(self.spec.origin, len(usable))
        paths = [self._paths[index] for index in usable]
        labels, names = self._classes(paths)
        folder = self.spec.origin
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
        return Contents(labels, splits, names, {PurePosixPath(folder).name or folder: digest})

    def _classes(self, paths: Sequence[str]) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        """Class of each picture, int64 [N], and the names of the classes."""
        if not self._labelled:
            return np.zeros(len(paths), np.int64), ()
        classes = [path.partition("/")[0] for path in paths]
        names = tuple(sorted(set(classes)))
        index_of = {name: index for index, name in enumerate(names)}
        return np.array([index_of[name] for name in classes], np.int64), names


def _on_disk(folder: Path) -> _Folder:
    """Lists the pictures below a folder, sorted by path.

    Raises:
        DataMissing: There is no such folder.
        DataError: The folder cannot be listed.
    """
    try:
        listing = walk(folder, SUFFIXES)
    except FileNotFoundError as error:
        raise DataMissing(f"{folder}: there is no such folder") from error
    except OSError as error:
        raise DataError(f"{folder}: {reason(error)}") from error
    # A stat of each file takes a few microseconds, reading it much longer.
    states: list[tuple[int, int | str]] = [_state(folder / path) for path in listing.paths]
    return _Folder(listing, states, lambda path: (folder / path).read_bytes(), None)


def _in_store(url: str) -> _Folder:
    """Lists the pictures below a URL, sorted by name.

    Raises:
        ConfigError: A package that the store needs is not installed.
        DataMissing: There are no objects, or the store cannot be reached.
    """
    objects = list_objects(url, SUFFIXES)
    states: list[tuple[int, int | str]] = [(found.size, found.stamp) for found in objects.entries]
    return _Folder(objects.listing, states, objects.read, _REQUESTS)


def _refuse_none(origin: str, listing: Listing) -> None:
    """Refuses a folder that has no files named like pictures.

    Raises:
        DataError: There are none.
    """
    if not listing.paths and not listing.problems:
        others = listing.describe_ignored()
        raise DataError(
            f"{origin}: no images, wanted files named {', '.join(sorted(SUFFIXES))}"
            + (f"; there are {others}" if others else "")
        )


def _labelled(folder: str, paths: Sequence[str]) -> bool:
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
