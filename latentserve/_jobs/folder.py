"""The folder of a dataset job: what the job is, and which of its shards are whole.

    job.json       what the job is; written once, before its first shard
    cursor.jsonl   a line for each whole shard, appended when its files are durable
    rows.jsonl     of image files: the name of each row's file
    .lock          held by the process that works here
    .*.tmp         being written; removed by whoever comes next

A shard counts when its line stands in the cursor. What a killed process left beyond
that, half a line included, is removed before the next one goes on.
"""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from latentserve._files import atomic_write, fsync_folder
from latentserve._jobs.shards import Written
from latentserve.errors import LatentserveError

MANIFEST = "job.json"
CURSOR = "cursor.jsonl"
ROWS = "rows.jsonl"
_LOCK = ".lock"
_HASHED_AT_ONCE = 2**20


class JobError(LatentserveError):
    """A job cannot begin or go on here; the message says what is in its way."""


@dataclass(frozen=True)
class WholeShard:
    """A shard that is on the disk.

    Attributes:
        shard: Its number, from 0.
        rows: How many it has.
        files: Its files.
    """

    shard: int
    rows: int
    files: tuple[Written, ...]

    def line(self) -> str:
        """Its line in the cursor."""
        return json.dumps(asdict(self)) + "\n"

    @classmethod
    def read(cls, line: str) -> "WholeShard":
        """Reads a line of the cursor.

        Raises:
            ValueError, TypeError, KeyError: It is none.
        """
        fields = json.loads(line)
        files = tuple(Written(**file) for file in fields["files"])
        return cls(int(fields["shard"]), int(fields["rows"]), files)


class JobFolder:
    """The folder of one job, held by this process alone while it is open.

    Attributes:
        path: Where it is.
        manifest: What the job is; None before `begin`.
        whole: The shards that are on the disk, by their number.
        rows: How many they have.
        lost: Files of shards that were whole once and are missing or damaged now.

    Raises:
        JobError: Another process works here, or the folder holds something else.
        OSError: It cannot be made or written.
    """

    def __init__(self, path: Path):
        self.path = path
        self.manifest: dict[str, Any] | None = None
        self.whole: dict[int, WholeShard] = {}
        self.rows = 0
        self.lost: list[str] = []
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            self._hold()
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
        os.close(self._lock)

    def begin(self, manifest: dict[str, Any], more: dict[str, bytes]) -> None:
        """Writes down what the job is.

        Args:
            manifest: Readable as JSON.
            more: Other files that belong to it, by their names.
        """
        # Of a job that was begun here and has nothing whole.
        (self.path / ROWS).unlink(missing_ok=True)
        for name, content in more.items():
            atomic_write(self.path / name, content)
        atomic_write(self.path / MANIFEST, _json(manifest))
        self.manifest = json.loads(_json(manifest))

    def recover(self, is_shard: Callable[[str], bool], *, verify: bool) -> None:
        """Reads the cursor and removes what is not in it.

        Args:
            is_shard: Whether a name is one of a shard's files.
            verify: Hash the files as well, and do not only look at their sizes.
        """
        cursor = self.path / CURSOR
        text = cursor.read_text(encoding="utf-8") if cursor.exists() else ""
        for line in text.splitlines(keepends=True):
            # A line that was cut short ends the file.
            with contextlib.suppress(ValueError, TypeError, KeyError):
                if line.endswith("\n"):
                    shard = WholeShard.read(line)
                    self.whole[shard.shard] = shard
        for shard in list(self.whole.values()):
            damaged = [file.name for file in shard.files if not self._is_there(file, verify)]
            if damaged:
                self.lost += damaged
                del self.whole[shard.shard]
        self.rows = sum(shard.rows for shard in self.whole.values())
        # The cursor goes first: what it does not name can then be removed.
        if text != "".join(shard.line() for shard in self.whole.values()):
            self._rewrite()
        named = {file.name for shard in self.whole.values() for file in shard.files}
        for path in self.path.iterdir():
            temporary = path.name.startswith(".") and path.name.endswith(".tmp")
            if temporary or (is_shard(path.name) and path.name not in named):
                path.unlink()
        fsync_folder(self.path)

    def add(self, shard: WholeShard) -> None:
        """Counts a shard whose files are durable."""
        is_new = not (self.path / CURSOR).exists()
        with (self.path / CURSOR).open("a", encoding="utf-8") as file:
            file.write(shard.line())
            file.flush()
            os.fsync(file.fileno())
        if is_new:
            fsync_folder(self.path)
        self.whole[shard.shard] = shard
        self.rows += shard.rows

    def finish(self) -> None:
        """Puts the lines of the cursor in order, where a lost shard was made anew."""
        if list(self.whole) != sorted(self.whole):
            self._rewrite()

    def _rewrite(self) -> None:
        self.whole = dict(sorted(self.whole.items()))
        lines = "".join(shard.line() for shard in self.whole.values())
        atomic_write(self.path / CURSOR, lines.encode("utf-8"))

    def _hold(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise JobError(f"{self.path}: another process is working there") from error

    def _read_manifest(self) -> dict[str, Any] | None:
        path = self.path / MANIFEST
        if not path.exists():
            strangers = sorted(self._strangers())
            if strangers:
                raise JobError(
                    f"{self.path}: got a folder with {strangers[0]} and no {MANIFEST}, "
                    "wanted an empty or a new one"
                )
            return None
        try:
            manifest = json.loads(path.read_bytes())
        except ValueError as error:
            raise JobError(f"{path}: cannot be read: {error}") from error
        if not isinstance(manifest, dict):
            raise JobError(f"{path}: got something else than what a job writes")
        return manifest

    def _strangers(self) -> Iterator[str]:
        """What stands in the folder and was not left by a job before it began."""
        for path in self.path.iterdir():
            begun = path.name.startswith(".") and path.name.endswith(".tmp")
            if not begun and path.name not in (_LOCK, ROWS):
                yield path.name

    def _is_there(self, file: Written, verify: bool) -> bool:
        path = self.path / file.name
        if not path.is_file() or path.stat().st_size != file.size:
            return False
        return not verify or _sha256(path) == file.sha256


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_HASHED_AT_ONCE):
            digest.update(piece)
    return digest.hexdigest()
