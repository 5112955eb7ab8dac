"""A copy of a run folder in object storage: written while the run goes on, and read back.

A store cannot replace several objects at once, so their order says what is whole: those that a
checkpoint needs are written before `checkpoint.pt`, and all others before `metrics.json`, which
marks the run as complete. Who reads `checkpoint.pt` first and the others after it has a run that
can be resumed: the log only grows, and frames are written again with equal content.
"""

import contextlib
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from latentserve._files import atomic_write, reason
from latentserve._store import Entry, MissingStore, Store, StoreError
from latentserve._urls import is_url, without_secrets
from training.errors import CheckpointError, ConfigError, CopyError
from training.report.write import LIVE
from training.run_folder import RunFolder

_CONFIG, _CHECKPOINT, _COMPLETE = "config.json", "checkpoint.pt", "metrics.json"
# What a model is read from.
_READ = (_CONFIG, _CHECKPOINT, _COMPLETE, "golden_inputs.npz", "score_percentiles.json")
# Size and time of a file, by which it is known whether its object is current.
_State = tuple[int, int]


class RunCopy:
    """The copy of one run.

    As a context manager, it writes the copy with a thread of its own: training does not wait for
    the store, and a store that fails is tried again at the next checkpoint.

    Args:
        url: URL of the copy's folder.
        folder: The run's folder.
        report: Called with a line when the store fails, and when it works again.

    Attributes:
        url: The URL without secrets, for messages.

    Raises:
        ConfigError: The store cannot be written, or a package that it needs is not installed.
        CheckpointError: The store cannot be reached.
    """

    def __init__(self, url: str, folder: Path, report: Callable[[str], None] = lambda _line: None):
        if url.startswith(("http:", "https:")):
            raise ConfigError(
                f"copy-to: got {without_secrets(url)}, wanted a store that can be written, such as "
                "s3://bucket/runs/x"
            )
        with _opening("copy-to"):
            self._store = Store(url)
        self.url = self._store.url
        self._folder = folder
        self._report = report
        self._put: dict[str, _State] = {}
        # What the thread's last attempt failed with; and whether that has been reported.
        self._failure = ""
        self._said = False
        self._wanted = threading.Condition()
        self._due = self._ending = False
        self._thread = threading.Thread(target=self._work, name="copy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Waits until the last checkpoint is copied; a second interrupt ends the waiting."""
        with self._wanted:
            self._ending = True
            self._wanted.notify()
        self._thread.join()
        if self._failure and kind is not None:
            self._report(f"{self.url}: without the last checkpoint: {self._failure}")

    def checkpoint_saved(self) -> None:
        """Lets the thread copy the checkpoint that is in the folder now; does not wait.

        What has become of the one before is reported here, not by the thread, since the lines of
        a run are printed by one thread.
        """
        if self._failure and not self._said:
            self._report(f"not copied: {self._failure}; trying again with each checkpoint")
        elif self._said and not self._failure:
            self._report(f"copied again to {self.url}")
        self._said = bool(self._failure)
        with self._wanted:
            self._due = True
            self._wanted.notify()

    def finish(self) -> None:
        """Copies everything of a complete run; called when the thread has ended.

        Raises:
            CopyError: The copy is not whole.
        """
        try:
            self._copy_all()
        except OSError as error:
            raise CopyError(
                f"{self.url}: the copy of {self._folder} is not whole ({reason(error)}). "
                "Remedy: the same command with --resume copies what is missing"
            ) from error

    def holds_run(self) -> bool:
        """Whether there is a checkpoint in the store.

        Raises:
            CheckpointError: The store cannot be reached.
        """
        with _opening("copy-to"):
            return any(entry.name == _CHECKPOINT for entry in self._store.entries())

    def fetch(self) -> None:
        """Fetches the copy into the run's folder, which is a run once its checkpoint is whole.

        The folder has no checkpoint, and the caller holds its lock.

        Raises:
            CheckpointError: The store cannot be reached, or the copy is damaged.
        """
        with _opening("copy-to"):
            _fetch(self._store, self._folder, self._store.entries())
        for path in _files(self._folder):  # they need not be put again
            self._put[path.relative_to(self._folder).as_posix()] = _state(path)

    def refuse_other(self) -> None:
        """Refuses to write over the copy of another run than that of the folder, or of a later one.

        Raises:
            CheckpointError: There is one, or the store cannot be reached.
        """
        with _opening("copy-to"), contextlib.suppress(FileNotFoundError):
            if self._store.read(_CONFIG) != (self._folder / _CONFIG).read_bytes():
                raise CheckpointError(
                    f"{self.url}: the copy of another run than {self._folder}; wanted the "
                    "copy of this one, or another URL"
                )
            with tempfile.TemporaryDirectory(prefix="latentserve-run-") as temporary:
                self._store.fetch(_CHECKPOINT, Path(temporary) / _CHECKPOINT)
                there, here = (
                    RunFolder(Path(temporary)).steps_done(),
                    RunFolder(self._folder).steps_done(),
                )
            if there > here:
                raise CheckpointError(
                    f"{self.url}: the copy is at step {there} and {self._folder} at step {here}; "
                    "wanted an --out without a run, to continue from the copy"
                )

    def _work(self) -> None:
        while True:
            with self._wanted:
                self._wanted.wait_for(lambda: self._due or self._ending)
                if not self._due:
                    return
                self._due = False
            try:
                self._copy_checkpoint()
                self._failure = ""
            except OSError as error:
                self._failure = reason(error)

    def _copy_checkpoint(self) -> None:
        """Copies the last checkpoint and what it needs.

        Raises:
            OSError: The store cannot be reached, or a file not read.
        """
        checkpoint, kept = self._folder / _CHECKPOINT, self._folder / f".{_CHECKPOINT}.copy.tmp"
        # Training may save the next one meanwhile, for which the log below may be too short.
        state = _freeze(checkpoint, kept)
        try:
            for path in sorted(_files(self._folder)):
                if path.name not in (_CHECKPOINT, _COMPLETE):
                    self._copy(path)
            if self._put.get(_CHECKPOINT) != state:
                self._store.put(_CHECKPOINT, kept)
                self._put[_CHECKPOINT] = state
        finally:
            kept.unlink(missing_ok=True)

    def _copy_all(self) -> None:
        """Copies all files, last the one that marks the run as complete.

        Raises:
            OSError: The store cannot be reached, or a file not read.
        """
        there = {entry.name: entry for entry in self._store.entries()}
        done = (self._folder / _COMPLETE).read_bytes()
        if _COMPLETE in there and self._store.read(_COMPLETE) == done:
            return
        self._copy_checkpoint()
        if LIVE in there and not (self._folder / LIVE).exists():
            self._store.delete(LIVE)  # the picture of a run that goes on
        self._store.put(_COMPLETE, done)

    def _copy(self, path: Path) -> None:
        name = path.relative_to(self._folder).as_posix()
        try:
            state = _state(path)
            if self._put.get(name) == state:
                return
            self._store.put(name, path.read_bytes())
        except FileNotFoundError:
            return  # the live picture comes and goes
        self._put[name] = state


@contextlib.contextmanager
def run_here(location: str | Path) -> Iterator[Path]:
    """A run folder to read: of a URL, what is needed of it in a temporary folder.

    Args:
        location: Path of a folder, or URL of a copy.

    Raises:
        ConfigError: A package that the store needs is not installed.
        CheckpointError: The store cannot be reached, or there is no run, or it is damaged.
    """
    if not is_url(location):
        yield Path(location)
        return
    with tempfile.TemporaryDirectory(prefix="latentserve-run-") as temporary:
        folder = Path(temporary) / PurePosixPath(str(location)).name
        folder.mkdir()
        with _opening("run"):
            store = Store(str(location))
            entries = [entry for entry in store.entries() if entry.name in _READ]
            if not {_CONFIG, _CHECKPOINT} <= {entry.name for entry in entries}:
                raise CheckpointError(
                    f"{store.url}: no {_CONFIG} and {_CHECKPOINT}; wanted the copy of a run that "
                    "`latentserve train --copy-to` has made"
                )
            _fetch(store, folder, entries)
        yield folder


def _fetch(store: Store, folder: Path, entries: Sequence[Entry]) -> None:
    """Fetches objects of a copy, the checkpoint first; it gets its name last.

    Raises:
        CheckpointError: An object has another size than its listing says.
        OSError: The store cannot be reached, or a file not written.
    """
    sizes = {entry.name: entry.size for entry in entries if not _is_hidden(entry.name)}
    last = [name for name in (_CHECKPOINT, _COMPLETE) if name in sizes]
    places = {name: folder / (f".{name}.fetched.tmp" if name in last else name) for name in sizes}
    for name in sorted(places, key=lambda name: (name != _CHECKPOINT, name)):
        path = places[name]
        path.parent.mkdir(parents=True, exist_ok=True)
        store.fetch(name, path)
        got = path.stat().st_size
        # The objects of a run that goes on may have been replaced since they were listed.
        if _COMPLETE in sizes and sizes[name] not in (-1, got):
            raise CheckpointError(
                f"{store.where(name)}: got {got} bytes, wanted the {sizes[name]} of its listing"
            )
    for name in sorted(sizes.keys() - {*last}):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())
    for name in last:
        atomic_write(folder / name, places[name].read_bytes())
        places[name].unlink()


def _files(folder: Path) -> Iterator[Path]:
    """The files of a run, without hidden ones."""
    for path in folder.rglob("*"):
        if path.is_file() and not _is_hidden(path.relative_to(folder).as_posix()):
            yield path


def _is_hidden(name: str) -> bool:
    """Whether a part of a name begins with a dot, `..` too; or it is a folder's."""
    return name.endswith("/") or any(part.startswith(".") for part in name.split("/"))


def _freeze(path: Path, kept: Path) -> _State:
    """Keeps a file's content under another name; a file that is replaced is not changed."""
    kept.unlink(missing_ok=True)
    try:
        os.link(path, kept)
    except OSError:  # a file system without hard links
        state = _state(path)  # first: if the file is replaced meanwhile, it is copied once more
        shutil.copyfile(path, kept)
        return state
    return _state(kept)


def _state(path: Path) -> _State:
    found = path.stat()
    return found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _opening(option: str) -> Iterator[None]:
    """Turns errors of a store into those of training."""
    try:
        yield
    except MissingStore as error:
        raise ConfigError(f"{option}: {error}") from error
    except StoreError as error:
        raise CheckpointError(str(error)) from error
