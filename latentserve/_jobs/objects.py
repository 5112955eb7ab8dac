"""Job in object storage: a folder whose objects cannot be appended to, renamed or locked.

    job.json           manifest of the job, as in a folder
    cursor/N.jsonl     the line of shard N for the cursor, put once the shard's files are there
    cursor.jsonl       the cursor of a folder, put when the job is finished; the above are removed
    rows.jsonl         as in a folder
    .owner-N           of the process that runs the job, the Nth that has

A process owns the job from when it creates the next `.owner-N`, which only one can. One that owned
it before finds that out before it records another shard, and stops: so a killed process need not
be waited for, and of two that run the same job the later one goes on.
"""

import contextlib
import json
import os
import re
import secrets
import socket
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from latentserve._jobs.files import Written
from latentserve._jobs.folder import (
    CURSOR,
    MANIFEST,
    ROWS,
    CompleteShard,
    JobError,
    json_bytes,
    parsed_manifest,
    read_cursor,
    refuse_foreign,
    sha256_of,
)
from latentserve._store import Entry, Store, StoreError

# Requests to the store at a time: each waits for the network most of the time.
_AT_A_TIME = 16

T = TypeVar("T")

_LINE = re.compile(r"cursor/\d+\.jsonl")
_OWNER = re.compile(r"\.owner-(\d+)")
# What a killed process may leave beside shards: of `creates_once`, and of stores that rename.
_LEFTOVER = re.compile(r"(cursor/)?\.[^/]+\.(probe|tmp)")


class JobObjects:
    """Job in a folder of object storage, owned while it is open.

    Args:
        store: The folder.
        single_writer: Nobody else writes to the folder, which its caller has to know: for stores
            that cannot refuse to overwrite an object.

    Attributes:
        path: URL of the folder, for messages.
        manifest: Manifest of the job; None before `begin`.
        complete: Complete shards, by number.
        rows: Number of rows in the complete shards.
        lost: Missing or damaged files of shards that were recorded as complete.

    Raises:
        JobError: The folder is not empty and not a job's; or the store cannot refuse to overwrite
            an object, and `single_writer` is not set; or another process takes the job over.
        StoreError: The store cannot be reached or written.
    """

    def __init__(self, store: Store, *, single_writer: bool = False):
        self.path = store.url
        self.manifest: dict[str, Any] | None = None
        self.complete: dict[int, CompleteShard] = {}
        self.rows = 0
        self.lost: list[str] = []
        self._store = store
        # Name and content of the object that says that this process owns the job.
        self._owner, self._claim = "", b""
        # The lines that are objects, and whether the cursor has all of them.
        self._lines: set[str] = set()
        self._is_joined = False
        found = {entry.name: entry for entry in store.entries()}
        self.manifest = self._read_manifest(found)
        if single_writer:
            return
        if not store.creates_once():
            raise JobError(
                f"{self.path}: the store overwrites objects that are there, so that two processes "
                "could run the job at once; wanted --single-writer (single_writer=True), if you "
                "know that there is only one"
            )
        self._take(found)

    def __enter__(self) -> "JobObjects":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Gives up the job."""
        if self._owner:
            with contextlib.suppress(StoreError):
                if self._owns():
                    self._store.delete(self._owner)

    def begin(self, manifest: dict[str, Any], more: dict[str, bytes]) -> None:
        """Writes the manifest of a new job; arguments as of `JobFolder.begin`."""
        self._require_owned()
        self._store.delete(ROWS)
        for name, content in more.items():
            self._store.put(name, content)
        if self._owner:
            self._store.delete(MANIFEST)
            if not self._store.create(MANIFEST, json_bytes(manifest)):
                raise JobError(self._taken_over())
        else:
            self._store.put(MANIFEST, json_bytes(manifest))
        self.manifest = json.loads(json_bytes(manifest))

    def recover(self, is_shard: Callable[[str], bool], *, verify: bool) -> None:
        """Reads which shards are complete and removes the objects of others.

        Arguments as of `JobFolder.recover`.
        """
        self._require_owned()
        found = {entry.name: entry for entry in self._store.entries()}
        lines = sorted(name for name in found if _LINE.fullmatch(name))
        names = [CURSOR] if CURSOR in found else []
        for content in self._each(self._store.read, [*names, *lines]):
            for shard in read_cursor(content.decode("utf-8")):
                self.complete[shard.shard] = shard
        for shard in list(self.complete.values()):
            damaged = [
                file.name for file in shard.files if not self._is_intact(file, found, verify)
            ]
            if damaged:
                self.lost += damaged
                del self.complete[shard.shard]
        self.rows = sum(shard.rows for shard in self.complete.values())
        kept = {file.name for shard in self.complete.values() for file in shard.files}
        kept |= {_line_name(number) for number in self.complete}
        if self.lost and names:
            # Each complete shard gets a line of its own before the whole cursor goes.
            for shard in self.complete.values():
                self._store.put(_line_name(shard.shard), shard.line().encode("utf-8"))
                self._lines.add(_line_name(shard.shard))
            self._store.delete(CURSOR)
        # Lines first: none may name files that are gone.
        for name in sorted(found, key=lambda name: not _LINE.fullmatch(name)):
            if name not in kept and (
                _LINE.fullmatch(name) or is_shard(name) or _LEFTOVER.fullmatch(name)
            ):
                self._store.delete(name)
        self._lines |= kept.intersection(lines)
        self._is_joined = bool(names) and not self.lost

    def add(self, shard: CompleteShard, attempt: str) -> None:
        """Records a shard, whose files have been put under their names by any attempt.

        Raises:
            JobError: A file is not there, or another process has taken the job over.
            StoreError: The store cannot be reached or written.
        """
        del attempt
        for file in shard.files:
            if self._size(file.name) not in (file.size, -1):
                raise JobError(
                    f"{self.path}: shard {shard.shard} was computed, but {file.name} is not there "
                    f"with {file.size} bytes; wanted a store that all workers write to"
                )
        self._require_owned()
        line, name = shard.line().encode("utf-8"), _line_name(shard.shard)
        if not self._owner:
            self._store.put(name, line)
        elif not self._store.create(name, line) and self._store.read(name) != line:
            raise JobError(self._taken_over())
        self.complete[shard.shard] = shard
        self.rows += shard.rows
        self._lines.add(name)
        self._is_joined = False

    def discard(self, files: Sequence[Written], attempt: str) -> None:
        """Does nothing: the files of another attempt have the same names and the same bytes."""

    def finish(self) -> None:
        """Writes the cursor of all shards in place of a line for each."""
        self._require_owned()
        if json.loads(self._store.read(MANIFEST)) != self.manifest:
            raise JobError(self._taken_over())
        self.complete = dict(sorted(self.complete.items()))
        if not self._is_joined:
            lines = "".join(shard.line() for shard in self.complete.values())
            self._store.put(CURSOR, lines.encode("utf-8"))
            self._is_joined = True
        list(self._each(self._store.delete, sorted(self._lines)))
        self._lines.clear()

    def _each(self, act: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
        """Acts on objects, several at a time: there is one for each shard."""
        with ThreadPoolExecutor(_AT_A_TIME, "objects") as pool:
            yield from pool.map(act, names)

    def _take(self, found: dict[str, Entry]) -> None:
        """Makes this process the owner."""
        owners = sorted(
            (int(match[1]), name) for name in found if (match := _OWNER.fullmatch(name))
        )
        number = owners[-1][0] + 1 if owners else 0
        who = {"host": socket.gethostname(), "process": os.getpid(), "id": secrets.token_hex(8)}
        owner, claim = f".owner-{number}", json_bytes(who)
        if not self._store.create(owner, claim):
            raise JobError(self._taken_over())
        self._owner, self._claim = owner, claim
        for _, name in owners:
            self._store.delete(name)

    def _require_owned(self) -> None:
        """Checks that no other process has taken the job over.

        A later owner creates the next object and then removes this one. When that one has ended,
        the names begin anew, but what an object says is never said again.
        """
        if not self._owner:
            return
        number = int(self._owner.rpartition("-")[2])
        if not self._owns() or self._size(f".owner-{number + 1}") is not None:
            self._owner = ""
            raise JobError(self._taken_over())

    def _owns(self) -> bool:
        """Whether the object of this process is there."""
        try:
            return self._store.read(self._owner) == self._claim
        except FileNotFoundError:
            return False

    def _size(self, name: str) -> int | None:
        """Size of an object, -1 if the store does not say; None if there is none."""
        try:
            return self._store.entry(name).size
        except FileNotFoundError:
            return None

    def _taken_over(self) -> str:
        return f"{self.path}: another process, which was started later, works on the job there"

    def _read_manifest(self, found: dict[str, Entry]) -> dict[str, Any] | None:
        if MANIFEST not in found:
            known = (ROWS, CURSOR)
            foreign = (
                name
                for name in found
                if name not in known
                and not _OWNER.fullmatch(name)
                and not _LEFTOVER.fullmatch(name)
            )
            refuse_foreign(self.path, foreign)
            return None
        return parsed_manifest(self._store.read(MANIFEST), self._store.where(MANIFEST))

    def _is_intact(self, file: Written, found: dict[str, Entry], verify: bool) -> bool:
        entry = found.get(file.name)
        if entry is None or entry.size not in (file.size, -1):
            return False
        if not verify:
            return True
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, file.name)
            self._store.fetch(file.name, path)
            return path.stat().st_size == file.size and sha256_of(path) == file.sha256


def _line_name(shard: int) -> str:
    return f"cursor/{shard:05d}.jsonl"
