"""Job in object storage: a folder whose objects cannot be appended to, renamed or locked.

    job.json           manifest of the job, as in a folder
    cursor/N.jsonl     the line of shard N for the cursor, put once the shard's files are there
    cursor.jsonl       the cursor of a folder, put when the job is finished; the above are removed
    rows.jsonl         as in a folder
    .owner-N           of the process that runs the job, the Nth that has

A process owns the job from when it creates the next `.owner-N`, which only one can. One that owned
it before finds that out before it records another shard, and stops: so a killed process need not
be waited for, and of two that run the same job the later one goes on. What an earlier one still
puts has the names of the later one's files: with the same settings the same bytes too. Other
settings are refused while an owner has not given up the job, which goes on, and `finish` looks
whether the files are those that were recorded.
"""

import json
import re
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
from latentserve._jobs.manifest import job_differences
from latentserve._jobs.owner import Owner, created, is_owner
from latentserve._store import Entry, Store

# Requests to the store at a time: each waits for the network most of the time.
_AT_A_TIME = 16

T = TypeVar("T")

_LINE = re.compile(r"cursor/\d+\.jsonl")
# What a killed process may leave beside shards: of `creates_once`, and of stores that rename.
_LEFTOVER = re.compile(r"(cursor/)?\.[^/]+\.(probe|tmp)")


class JobObjects:
    """Job in a folder of object storage, owned while it is open.

    Args:
        store: The folder.
        single_writer: Nobody else writes to the folder, which its caller has to know: for stores
            that cannot refuse to overwrite an object.
        differs: Says in what the job that is wanted differs from that of a manifest. A job that
            another process may still run is left alone if it does; otherwise it is taken over.

    Attributes:
        path: URL of the folder, for messages.
        manifest: Manifest of the job; None before `begin`.
        complete: Complete shards, by number.
        rows: Number of rows in the complete shards.
        lost: Missing or damaged files of shards that were recorded as complete.

    Raises:
        JobError: The folder is not empty and not a job's; or the store cannot refuse to overwrite
            an object, and `single_writer` is not set; or another process takes the job over, or has
            begun it with other settings and may still run.
        StoreError: The store cannot be reached or written.
    """

    def __init__(
        self,
        store: Store,
        *,
        single_writer: bool = False,
        differs: Callable[[dict[str, Any]], list[str]] = lambda _: [],
    ):
        self.path = store.url
        self.manifest: dict[str, Any] | None = None
        self.complete: dict[int, CompleteShard] = {}
        self.rows = 0
        self.lost: list[str] = []
        self._store = store
        self._owner: Owner | None = None
        # Stamps of the files of complete shards, by name; of earlier runs only if there are some.
        self._stamps: dict[str, str] = {}
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
        begun = self.manifest if any(map(is_owner, found)) else None
        if begun is not None and (differences := differs(begun)):
            raise self._running(differences)
        self._owner = Owner(store, found)

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
            self._owner.close()

    def begin(self, manifest: dict[str, Any], more: dict[str, bytes]) -> None:
        """Writes the manifest of a new job; arguments as of `JobFolder.begin`.

        Raises:
            JobError: Another process has begun the job with other settings and may still run, or
                has taken the job over.
            StoreError: The store cannot be reached or written.
        """
        self._require_owned()
        content = json_bytes(manifest)
        if self._owner and self._owner.took_over and self.manifest is not None:
            # Whoever tries again has to be refused as well.
            self._owner.leave()
            raise self._running(job_differences(json.loads(content), self.manifest))
        self._store.delete(ROWS)
        for name, more_content in more.items():
            self._store.put(name, more_content)
        if self._owner:
            if self.manifest is not None:
                self._store.delete(MANIFEST)
            if not created(self._store, MANIFEST, content):
                raise JobError(self._owner.lost())
        else:
            self._store.put(MANIFEST, content)
        self.manifest = json.loads(content)

    def recover(self, is_shard: Callable[[str], bool], *, verify: bool) -> None:
        """Reads which shards are complete and removes the objects of others.

        Arguments as of `JobFolder.recover`.
        """
        self._require_owned()
        found = {entry.name: entry for entry in self._store.entries()}
        lines = sorted(name for name in found if _LINE.fullmatch(name))
        names = [CURSOR] if CURSOR in found else []
        for content in self._each(self._store.read, [*names, *lines]):
            for shard in read_cursor(content):
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
        self._stamps = {name: found[name].stamp for name in kept if found[name].stamp}
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

    def add(self, shard: CompleteShard, attempt: str, stamps: Sequence[str]) -> None:
        """Records a shard, whose files have been put under their names by any attempt.

        Args:
            shard: The shard.
            attempt: Identifies the attempt.
            stamps: Stamps of the files right after that.

        Raises:
            JobError: A file is not there, or another process has taken the job over.
            StoreError: The store cannot be reached or written.
        """
        del attempt
        for file in shard.files:
            if self._size(file.name) not in (file.size, -1):
                self._require_owned()  # the next owner removes what is not recorded
                raise JobError(
                    f"{self.path}: shard {shard.shard} was computed, but {file.name} is not there "
                    f"with {file.size} bytes; wanted a store that all workers write to"
                )
        self._require_owned()
        line, name = shard.line().encode("utf-8"), _line_name(shard.shard)
        if not self._owner:
            self._store.put(name, line)
        elif not created(self._store, name, line):
            raise JobError(self._owner.lost())
        self.complete[shard.shard] = shard
        self._stamps |= {file.name: stamp for file, stamp in zip(shard.files, stamps, strict=True)}
        self.rows += shard.rows
        self._lines.add(name)
        self._is_joined = False

    def discard(self, files: Sequence[Written], attempt: str) -> None:
        """Does nothing: the files of another attempt have the same names, and replaced these."""

    def finish(self) -> None:
        """Writes the cursor of all shards in place of a line for each.

        Raises:
            JobError: Another process has taken the job over, or has overwritten files: these are
                removed, so that the next run computes them again.
            StoreError: The store cannot be reached or written.
        """
        self._require_owned()
        if self._owner and json.loads(self._store.read(MANIFEST)) != self.manifest:
            raise JobError(self._owner.lost())
        self.complete = dict(sorted(self.complete.items()))
        if not self._is_joined:
            self._refuse_overwritten()
            lines = "".join(shard.line() for shard in self.complete.values())
            self._store.put(CURSOR, lines.encode("utf-8"))
            self._is_joined = True
        list(self._each(self._store.delete, sorted(self._lines)))
        self._lines.clear()

    def _running(self, differences: list[str]) -> JobError:
        return JobError(
            f"{self.path}: another process has begun the job there and may still run: "
            f"{'; '.join(differences)}; wanted the same settings, or another folder"
        )

    def _refuse_overwritten(self) -> None:
        """Checks that the files of all shards are those that were recorded.

        Stamps say so at once. Where one differs, as that of the same bytes put again may, or the
        store has none, the hash does.

        Raises:
            JobError: Some are others. They are removed.
            StoreError: The store cannot be reached or written.
        """
        found = {entry.name: entry for entry in self._store.entries()}

        def overwritten(file: Written) -> str:
            stamp = self._stamps.get(file.name)
            if stamp is None or (stamp and file.name in found and found[file.name].stamp == stamp):
                return ""
            return "" if self._is_intact(file, found, verify=True) else file.name

        files = [file for shard in self.complete.values() for file in shard.files]
        with ThreadPoolExecutor(_AT_A_TIME, "objects") as pool:
            names = list(filter(None, pool.map(overwritten, files)))
        for name in names:
            self._store.delete(name)
        if names:
            more = f" and {len(names) - 1} more" if names[1:] else ""
            raise JobError(
                f"{self.path}: {names[0]}{more} overwritten by another process, wanted no other "
                "there; the same command computes what is missing"
            )

    def _each(self, act: Callable[[str], T], names: Sequence[str]) -> Iterator[T]:
        """Acts on objects, several at a time: there is one for each shard."""
        with ThreadPoolExecutor(_AT_A_TIME, "objects") as pool:
            yield from pool.map(act, names)

    def _require_owned(self) -> None:
        if self._owner:
            self._owner.require()

    def _size(self, name: str) -> int | None:
        """Size of an object, -1 if the store does not say; None if there is none."""
        try:
            return self._store.entry(name).size
        except FileNotFoundError:
            return None

    def _read_manifest(self, found: dict[str, Entry]) -> dict[str, Any] | None:
        if MANIFEST not in found:
            known = (ROWS, CURSOR)
            foreign = (
                name
                for name in found
                if name not in known and not is_owner(name) and not _LEFTOVER.fullmatch(name)
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
