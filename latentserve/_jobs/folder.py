"""Folder of a dataset job: its manifest, and which of its shards are complete.

    job.json       manifest of the job, written once, before the first shard
    cursor.jsonl   a line for each complete shard, appended once its files are durable
    rows.jsonl     for image files: a line with the name of each row's file
    .lock          locked by the process that runs the job
    .*.tmp         files being written; leftovers are removed when the job ends or is resumed

Whoever computes a shard writes hidden files into the folder. The process that holds the lock
renames them and appends to the cursor; all other changes of the folder are made here.

A shard is complete once the cursor has its line. All other leftovers of a killed process,
incomplete lines included, are removed when the job is resumed.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from latentserve._files import atomic_write, fsync_folder
from latentserve._jobs.files import Written, discard, is_hidden, missing, publish
from latentserve._jobs.sizes import Size
from latentserve.errors import LatentserveError

MANIFEST = "job.json"
CURSOR = "cursor.jsonl"
ROWS = "rows.jsonl"
_LOCK = ".lock"
_HASHED_AT_ONCE = 2**20


class JobError(LatentserveError):
    """A job cannot be started or resumed in a folder; the message says why."""


@dataclass(frozen=True)
class CompleteShard:
    """A shard whose files are durable.

    Attributes:
        shard: Number of the shard, from 0.
        rows: Number of rows.
        files: Files of the shard.
        size: Height and width of its images; None in a job of one size.
        row_numbers: Number of each row in the source; None in a job of one size.
    """

    shard: int
    rows: int
    files: tuple[Written, ...]
    size: Size | None = None
    row_numbers: "array[int] | None" = None

    def line(self) -> str:
        """Returns the line of the shard for the cursor."""
        files = [asdict(file) for file in self.files]
        fields: dict[str, Any] = {"shard": self.shard, "rows": self.rows, "files": files}
        if self.size is not None and self.row_numbers is not None:
            fields |= {"height": self.size[0], "width": self.size[1]}
            fields |= {"row_numbers": self.row_numbers.tolist()}
        return json.dumps(fields) + "\n"

    @classmethod
    def read(cls, line: str) -> "CompleteShard":
        """Reads a line of the cursor.

        Raises:
            ValueError, TypeError, KeyError: The line is malformed.
        """
        fields = json.loads(line)
        files = tuple(Written(**file) for file in fields["files"])
        shard, rows = int(fields["shard"]), int(fields["rows"])
        if "row_numbers" not in fields:
            return cls(shard, rows, files)
        size = int(fields["height"]), int(fields["width"])
        return cls(shard, rows, files, size, array("q", fields["row_numbers"]))


class JobFolder:
    """Folder of one job, locked while it is open.

    Args:
        path: Path of the folder; created if it is missing.

    Attributes:
        path: Path of the folder.
        manifest: Manifest of the job; None before `begin`.
        complete: Complete shards, by number.
        rows: Number of rows in the complete shards.
        lost: Missing or damaged files of shards that the cursor lists as complete.

    Raises:
        JobError: Another process has locked the folder, or it is not empty and not a job's.
        OSError: The folder cannot be created or written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest: dict[str, Any] | None = None
        self.complete: dict[int, CompleteShard] = {}
        self.rows = 0
        self.lost: list[str] = []
        path.mkdir(parents=True, exist_ok=True)
        if not (path / _LOCK).exists():
            self._read_manifest()  # leaves no lock in a folder that it refuses
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._take_lock()
            self.manifest = self._read_manifest()
        except BaseException:
            os.close(self._lock)
            raise

    def __enter__(self) -> "JobFolder":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Removes what was being written, and gives up the lock; may be called again."""
        if self._lock < 0:
            return
        try:
            with contextlib.suppress(OSError):
                for path in self.path.iterdir():
                    if is_hidden(path.name):
                        path.unlink(missing_ok=True)
        finally:
            os.close(self._lock)
            self._lock = -1

    def begin(self, manifest: dict[str, Any], more: dict[str, bytes]) -> None:
        """Writes the manifest of a new job.

        Args:
            manifest: The manifest, in JSON types.
            more: Contents of further files of the job, by file name.
        """
        # A job that was killed here before its first shard was complete may have left one.
        (self.path / ROWS).unlink(missing_ok=True)
        for name, content in more.items():
            atomic_write(self.path / name, content)
        atomic_write(self.path / MANIFEST, json_bytes(manifest))
        self.manifest = json.loads(json_bytes(manifest))

    def recover(self, is_shard: Callable[[str], bool], *, verify: bool) -> None:
        """Reads the cursor and removes the files of incomplete shards.

        Args:
            is_shard: Returns whether a file name is that of a shard.
            verify: Whether to check the hashes of files and not only their sizes.
        """
        cursor = self.path / CURSOR
        content = cursor.read_bytes() if cursor.exists() else b""
        for shard in read_cursor(content):
            self.complete[shard.shard] = shard
        for shard in list(self.complete.values()):
            damaged = [file.name for file in shard.files if not self._is_intact(file, verify)]
            if damaged:
                self.lost += damaged
                del self.complete[shard.shard]
        self.rows = sum(shard.rows for shard in self.complete.values())
        # Written first: even after a crash the cursor must not name files that are removed below.
        if content != self._lines():
            self._rewrite()
        named = {file.name for shard in self.complete.values() for file in shard.files}
        for path in self.path.iterdir():
            if is_hidden(path.name) or (is_shard(path.name) and path.name not in named):
                # A worker of a job that was killed may still remove its own.
                path.unlink(missing_ok=True)
        fsync_folder(self.path)

    def add(self, shard: CompleteShard, attempt: str, stamps: Sequence[str] = ()) -> None:
        """Renames the files of a shard, which must be durable, and appends it to the cursor.

        Args:
            shard: The shard.
            attempt: Identifies the attempt that wrote its files.
            stamps: Of objects in a store; not used here.

        Raises:
            JobError: The files are not in the folder.
        """
        del stamps
        if lacking := missing(self.path, shard.files, attempt):
            raise JobError(
                f"{self.path}: shard {shard.shard} was computed, but {lacking} is not there; "
                "wanted a folder that all workers share"
            )
        publish(self.path, shard.files, attempt)
        is_new = not (self.path / CURSOR).exists()
        with (self.path / CURSOR).open("a", encoding="utf-8") as file:
            file.write(shard.line())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            fsync_folder(self.path)
        self.complete[shard.shard] = shard
        self.rows += shard.rows

    def discard(self, files: Sequence[Written], attempt: str) -> None:
        """Removes the hidden files of an attempt that is not wanted."""
        discard(self.path, files, attempt)

    def finish(self) -> None:
        """Sorts the cursor, which is unsorted if a lost shard was written again."""
        if list(self.complete) != sorted(self.complete):
            self._rewrite()

    def _rewrite(self) -> None:
        self.complete = dict(sorted(self.complete.items()))
        atomic_write(self.path / CURSOR, self._lines())

    def _lines(self) -> bytes:
        """Content of the cursor."""
        return "".join(shard.line() for shard in self.complete.values()).encode("utf-8")

    def _take_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"{self.path}: another process is working there") from error

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST
        if not path.exists():
            refuse_foreign(self.path, self._foreign())
            return None
        return parsed_manifest(path.read_bytes(), path)

    def _foreign(self) -> Iterator[str]:
        """Yields the names of files that are not leftovers of a job without a manifest.

        A job that was killed before it wrote its manifest leaves only temporary files, its lock
        and its table of rows.
        """
        for path in self.path.iterdir():
            if not is_hidden(path.name) and path.name not in (_LOCK, ROWS):
                yield path.name

    def _is_intact(self, file: Written, verify: bool) -> bool:
        path = self.path / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        return not verify or sha256_of(path) == file.sha256


def read_cursor(content: bytes) -> Iterator[CompleteShard]:
    """Yields the shards of a cursor, which may end with anything after a power cut."""
    for line in content.decode("utf-8", errors="replace").splitlines(keepends=True):
        with contextlib.suppress(ValueError, TypeError, KeyError):
            if line.endswith("\n"):
                yield CompleteShard.read(line)


def refuse_foreign(folder: Path | str, names: Iterable[str]) -> None:
    """Refuses a folder without a manifest that is not empty.

    Args:
        folder: The folder, for the message.
        names: Names of its files that no job leaves behind.

    Raises:
        JobError: There are some.
    """
    if foreign := sorted(names):
        raise JobError(
            f"{folder}: got a folder with {foreign[0]} and no {MANIFEST}, "
            "wanted an empty or a new one"
        )


def parsed_manifest(content: bytes, where: Path | str) -> dict[str, Any]:
    """Parses the manifest of a job.

    Args:
        content: Content of the file.
        where: Its path or URL, for messages.

    Raises:
        JobError: It is not a JSON object.
    """
    try:
        manifest = json.loads(content)
    except ValueError as error:
        raise JobError(f"{where}: cannot be read: {error}") from error
    if not isinstance(manifest, dict):
        raise JobError(f"{where}: not the manifest of a job, wanted a JSON object")
    return manifest


def json_bytes(value: dict[str, Any]) -> bytes:
    """The content of a file with a JSON object."""
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()
