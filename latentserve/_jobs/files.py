"""Files of a shard: hidden while they are written, and renamed once their shard is committed.

Any number of processes may compute the same shard at once, for example after a worker was given up
that still runs: each attempt has hidden names of its own. Objects of a store cannot be renamed and
have their final names at once.
"""

import contextlib
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from latentserve._files import fsync_folder
from latentserve._store import Store


@dataclass(frozen=True)
class Written:
    """A durable file of a shard.

    Attributes:
        name: Name in the job's folder.
        size: Size in bytes.
        sha256: SHA-256 of the content, in hexadecimal.
    """

    name: str
    size: int
    sha256: str


class HashedFile:
    """A hidden file that is hashed while it is written; pyarrow writes to it.

    Args:
        folder: Folder of the job.
        name: Name that the file gets when its shard is committed.
        attempt: Identifies the attempt to compute the shard.

    Raises:
        OSError: The file cannot be created.
    """

    def __init__(self, folder: Path, name: str, attempt: str):
        self.name = name
        self.size = 0
        self._path = folder / _hidden(name, attempt)
        self._digest = hashlib.sha256()
        self._kept = False
        self._file = self._path.open("wb")

    @property
    def closed(self) -> bool:
        """Whether the file is closed."""
        return self._file.closed

    def write(self, data: Any) -> int:
        """Appends the bytes of any buffer."""
        view = memoryview(data)
        self._file.write(view)
        self._digest.update(view)
        self.size += view.nbytes
        return view.nbytes

    def tell(self) -> int:
        """Number of bytes written."""
        return self.size

    def flush(self) -> None:
        """Does nothing, since `sync` flushes."""

    def close(self) -> None:
        """Does nothing, since pyarrow calls it before `sync`."""

    def sync(self) -> Written:
        """Fsyncs and closes the file."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return Written(self.name, self.size, self._digest.hexdigest())

    def keep(self) -> None:
        """Leaves the file to be renamed: `drop` no longer removes it."""
        self._kept = True

    def drop(self) -> None:
        """Removes the file, unless it is kept."""
        with contextlib.suppress(OSError):
            self._file.close()
        if not self._kept:
            self._path.unlink(missing_ok=True)


def is_hidden(name: str) -> bool:
    """Whether a name is that of a file being written, or a leftover of one."""
    return name.startswith(".") and name.endswith(".tmp")


def missing(folder: Path, files: Sequence[Written], attempt: str) -> str:
    """Returns the name of a hidden file that is not there in its size; empty if all are."""
    for file in files:
        path = folder / _hidden(file.name, attempt)
        if not path.is_file() or path.stat().st_size != file.size:
            return path.name
    return ""


def publish(folder: Path, files: Sequence[Written], attempt: str) -> None:
    """Renames the hidden files of an attempt to their final names, and syncs the folder."""
    for file in files:
        (folder / _hidden(file.name, attempt)).replace(folder / file.name)
    fsync_folder(folder)


def put(store: Store, folder: Path, files: Sequence[Written], attempt: str) -> tuple[str, ...]:
    """Puts the hidden files of an attempt into a store, under their final names.

    Returns:
        The stamp of each object, empty if there is none. Another process that overwrites an object
        changes it.

    Raises:
        StoreError: The store cannot be reached or written.
    """
    stamps = []
    for file in files:
        store.put(file.name, folder / _hidden(file.name, attempt))
        try:
            stamps.append(store.entry(file.name).stamp)
        except FileNotFoundError:
            stamps.append("")  # the next owner of the job has removed it
    return tuple(stamps)


def discard(folder: Path, files: Sequence[Written], attempt: str) -> None:
    """Removes the hidden files of an attempt that is not wanted."""
    for file in files:
        (folder / _hidden(file.name, attempt)).unlink(missing_ok=True)


def _hidden(name: str, attempt: str) -> str:
    return f".{name}.{attempt}.tmp"
