"""Files that a job reads: by path, or by URL in object storage."""

import os
from collections import deque
from collections.abc import Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

from latentserve._jobs.errors import SourceError
from latentserve._store import Store
from latentserve._urls import is_url, secret_in
from latentserve._walk import Listing, listing_of

# Bytes of an object that are fetched at once and kept: a request takes as long as a few megabytes.
_BLOCK_BYTES = 8 * 2**20
# Objects that are fetched ahead: each request waits for the network most of the time.
_AHEAD = 16

#: Size in bytes, and modification time in nanoseconds or the stamp of an object.
Stamp = tuple[int, int | str]


@dataclass(frozen=True)
class RemoteFile:
    """A file or folder by URL, with the methods of `Path` that sources use.

    Attributes:
        store: The folder that the URL is in.
        path: Path in that folder; `.` for the folder itself.
    """

    store: Store
    path: PurePosixPath
    _block: "dict[str, Any]" = field(default_factory=dict, init=False, repr=False, compare=False)

    def __str__(self) -> str:
        return self.store.where(self._name)

    def __truediv__(self, name: str) -> "RemoteFile":
        return RemoteFile(self.store, self.path / name)

    def absolute(self) -> "RemoteFile":
        """Returns the same file: a URL does not depend on the working folder."""
        return self

    def __reduce__(self) -> tuple[type["RemoteFile"], tuple[Store, PurePosixPath]]:
        return RemoteFile, (self.store, self.path)

    @property
    def suffix(self) -> str:
        """Suffix of the name, such as `.npy`."""
        return self.path.suffix

    def exists(self) -> bool:
        """Whether there is an object, or a folder of objects, of this URL."""
        try:
            self.store.entry(self._name)
        except FileNotFoundError:
            return False
        return True

    def is_dir(self) -> bool:
        """Whether there are objects below this URL and none of it."""
        return self.store.is_folder(self._name)

    def listing(self, suffixes: Container[str]) -> Listing:
        """Lists the objects below this URL, as `walk` lists the files of a folder."""
        prefix = f"{self._name}/" if self._name else ""
        entries = self.store.entries(self._name)
        return listing_of((entry.name.removeprefix(prefix) for entry in entries), suffixes)

    def read_bytes(self) -> bytes:
        """Content of the object."""
        return self.store.read(self._name)

    def open(self, mode: str) -> IO[bytes]:
        """Opens the object for reading; its bytes are fetched as they are read."""
        assert mode == "rb"
        return self.store.open(self._name)

    def stamp(self) -> Stamp:
        """Size and stamp of the object."""
        entry = self.store.entry(self._name)
        return entry.size, entry.stamp

    def read_range(self, start: int, stop: int, stamp: Stamp) -> bytes:
        """Reads bytes through a block that is kept, since rows are read a few at a time.

        Args:
            start: Index of the first byte.
            stop: Index of the byte after the last one.
            stamp: What `stamp` returned when the file was opened; with a size.

        Raises:
            OSError: The object cannot be read.
            SourceError: It has another stamp.
        """
        begin, block = self._block.get("begin", 0), self._block.get("bytes", b"")
        if not begin <= start <= stop <= begin + len(block):
            if self.stamp() != stamp:
                raise SourceError(f"{self}: was changed while it was being read")
            begin, end = start, min(max(stop, start + _BLOCK_BYTES), stamp[0])
            block = self.store.read(self._name, begin, end)
            if len(block) > end - begin:
                begin = 0  # an HTTP server that knows no ranges has sent the whole file
            self._block.update(begin=begin, bytes=block)
        content: bytes = block[start - begin : stop - begin]
        return content

    @property
    def _name(self) -> str:
        name = str(self.path)
        return "" if name == "." else name


#: A file that a job reads, or a folder of them.
Place = Path | RemoteFile


def place_of(given: str | os.PathLike[str]) -> Place:
    """The place that a caller names by a path or a URL.

    Raises:
        MissingStore: A package that the URL needs is not installed.
        SourceError: The URL has a password, a query or a fragment.
        StoreError: The URL is malformed.
    """
    if not is_url(given):
        return Path(given)
    url = _checked(str(given))
    if not urlsplit(url).path.strip("/"):
        return RemoteFile(Store(url), PurePosixPath())
    folder, _, name = url.rpartition("/")
    return RemoteFile(Store(folder), PurePosixPath(name))


def folder_of(given: str | os.PathLike[str]) -> Path | str:
    """The path or URL that a caller names as the folder to write to.

    Raises:
        SourceError: The URL has a password, a query or a fragment.
    """
    return _checked(str(given)) if is_url(given) else Path(given)


def _checked(url: str) -> str:
    """A URL without a slash at its end, which may stand in manifests and messages."""
    if problem := secret_in(url):
        raise SourceError(problem)
    return url.rstrip("/")


def name_in(folder: Place, file: Place) -> str:
    """Path of a file in a folder, at any depth."""
    if isinstance(folder, RemoteFile) and isinstance(file, RemoteFile):
        return str(file.path.relative_to(folder.path))
    return str(Path(str(file)).relative_to(str(folder)))


def stamp_of(place: Place) -> Stamp:
    """Size and time or stamp of a file, which change with its content.

    Raises:
        OSError: There is no such file, or it cannot be read.
    """
    if isinstance(place, RemoteFile):
        return place.stamp()
    stat = place.stat()
    return stat.st_size, stat.st_mtime_ns


def check_stamp(place: Place, stamp: Stamp) -> None:
    """Checks the size, and the time or stamp, of a file.

    Raises:
        OSError: The file cannot be read.
        SourceError: They differ from `stamp`.
    """
    found = stamp_of(place)
    if found != stamp:
        raise SourceError(
            f"{place}: got {_described(found)}, wanted {_described(stamp)} as when the job was "
            "planned: it was changed, or this host has another copy"
        )


def _described(stamp: Stamp) -> str:
    size, changed = stamp
    return f"{size} bytes " + (f"changed at {changed} ns" if isinstance(changed, int) else changed)


def read_range(place: Place, start: int, stop: int, stamp: Stamp) -> bytes:
    """Reads the bytes of a file from `start` up to, but not including, `stop`.

    Args:
        place: The file.
        start: Index of the first byte.
        stop: Index of the byte after the last one.
        stamp: What `stamp_of` returned when the file was opened.

    Raises:
        OSError: The file cannot be read.
        SourceError: It was changed or truncated since.
    """
    if isinstance(place, RemoteFile):
        content = place.read_range(start, stop, stamp)
    else:
        with place.open("rb") as file:
            stat = os.fstat(file.fileno())
            if (stat.st_size, stat.st_mtime_ns) != stamp:
                raise SourceError(f"{place}: was changed while it was being read")
            file.seek(start)
            content = file.read(stop - start)
    if len(content) != stop - start:
        raise SourceError(f"{place}: was truncated while it was being read")
    return content


def contents_of(files: Sequence[Place]) -> Iterator[tuple[Place, bytes]]:
    """Yields files with their contents, in order; objects are fetched a few at a time.

    Raises:
        OSError: A file cannot be read.
    """
    if not any(isinstance(file, RemoteFile) for file in files):
        for file in files:
            yield file, file.read_bytes()
        return
    with ThreadPoolExecutor(_AHEAD, "objects") as pool:
        waiting = deque((file, pool.submit(file.read_bytes)) for file in files[:_AHEAD])
        try:
            for file in files[_AHEAD:]:
                first, content = waiting.popleft()
                waiting.append((file, pool.submit(file.read_bytes)))
                yield first, content.result()
            for first, content in waiting:
                yield first, content.result()
        finally:
            pool.shutdown(cancel_futures=True)
