"""Files of a source that are in object storage, fetched whole into the data folder.

Parquet, npy and IDX files are read in several places, again and again, so they are mapped from
disk. Each source has a folder `fetched/` + key, with its objects under the paths of their URLs,
and index.json, which says of which size and stamp they were. Objects that have changed since are
fetched again.
"""

import fcntl
import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from latentserve._files import atomic_write, beside, reason
from latentserve._store import Entry, Store, StoreError
from latentserve._urls import is_url
from training.data.checks import Progress, silent
from training.data.download import Report, data_dir
from training.data.locations import locations_of
from training.data.objects import list_objects, opening
from training.data.spec import DataSpec
from training.errors import DataError

#: Name of the work, for the progress; it is counted in files.
STAGE = "fetching"

_AT_A_TIME = 4


@dataclass(frozen=True)
class _Object:
    """An object, and where it is kept.

    Attributes:
        store: The store that it is in.
        entry: Its name there, its size and its stamp.
        place: Path of the file, relative to the source's folder.
    """

    store: Store
    entry: Entry
    place: str

    @property
    def state(self) -> list[Any]:
        return [self.entry.size, self.entry.stamp]


def fetched(
    spec: DataSpec, root: Path | None, report: Report, progress: Progress = silent
) -> DataSpec:
    """Fetches the files of a source that are in object storage, unless they are there already.

    Args:
        spec: A source of kind `parquet`, `npy` or `idx`.
        root: The data folder; `data_dir()` by default.
        report: Called with a line before files are fetched.
        progress: Called after each file.

    Returns:
        The same specification with paths in place of URLs.

    Raises:
        ConfigError: A package that the store needs is not installed.
        DataMissing: An object is not there, or the store cannot be reached.
        DataError: An object cannot be fetched or kept.
    """
    key = hashlib.sha256(spec.source.encode()).hexdigest()[:16]
    folder = (root or data_dir()) / "fetched" / key
    locations = [
        str(folder / _place(location)) if is_url(location) else location
        for location in locations_of(spec.source)
    ]
    objects = [found for url in spec.urls for found in _objects(url, spec.kind)]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder, report):
            _fetch_all(objects, folder, spec, report, progress)
    except StoreError as error:
        raise DataError(str(error)) from error
    except OSError as error:
        raise DataError(
            f"{error.filename or folder}: {reason(error)}, while {spec.origin} was fetched"
        ) from error
    return replace(spec, source=f"{spec.kind}:{','.join(locations)}")


def _objects(url: str, kind: str) -> list[_Object]:
    """The objects that a URL stands for: one, or for Parquet those below a folder."""
    place = _place(url)
    # By HTTP, what is listed is the links of a page, and a file is no page.
    if kind == "parquet" and not url.startswith(("http:", "https:")):
        objects = list_objects(url, (".parquet",))
        if objects.listing.paths != [""]:
            if not objects.entries:
                raise DataError(f"{objects.store.url}: no objects named .parquet")
            return [
                _Object(objects.store, entry, f"{place}/{entry.name}") for entry in objects.entries
            ]
    folder, _, name = url.rpartition("/")
    with opening(folder) as store:
        return [_Object(store, store.entry(name), place)]


def _place(url: str) -> str:
    """Relative path of the file that keeps the object of a URL."""
    parts = urlsplit(url)
    # Relative whatever the URL is: `..` must not lead out of the folder.
    within = [part for part in PurePosixPath(parts.path).parts if part not in ("/", "..")]
    return str(PurePosixPath(parts.netloc.rpartition("@")[2] or parts.scheme, *within))


def _fetch_all(
    objects: list[_Object], folder: Path, spec: DataSpec, report: Report, progress: Progress
) -> None:
    """Fetches what is not there as the store has it now, and removes what the store has not.

    Raises:
        OSError: A file cannot be fetched or written.
    """
    known = _index(folder)
    wanted = {found.place for found in objects}
    for gone in known.keys() - wanted:
        (folder / gone).unlink(missing_ok=True)
        del known[gone]
    missing = [
        found
        for found in objects
        if known.get(found.place) != found.state or not _is_whole(folder / found.place, found.entry)
    ]
    if not missing:
        report(f"{len(objects)} files, fetched before into {folder}")
        return
    _remove_interrupted(folder)
    size = sum(max(0, found.entry.size) for found in missing)
    report(f"fetching {len(missing)} files, {size / 2**20:.1f} MiB, from {spec.origin}")
    pool = ThreadPoolExecutor(_AT_A_TIME, thread_name_prefix="fetch")
    try:
        waiting = {pool.submit(_fetch, found, folder): found for found in missing}
        for done, future in enumerate(as_completed(waiting), 1):
            future.result()
            known[waiting[future].place] = waiting[future].state
            # After each file, so that an interrupted start loses none that is whole.
            atomic_write(folder / "index.json", json.dumps(known).encode())
            progress(STAGE, done, len(missing))
    finally:
        pool.shutdown(cancel_futures=True)


def _fetch(found: _Object, folder: Path) -> None:
    """Fetches an object to a file that appears when it is whole.

    Raises:
        OSError: It cannot be fetched or written, or has another size than the store says.
    """
    path = folder / found.place
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        found.store.fetch(found.entry.name, temporary)
        if not _is_whole(temporary, found.entry):
            raise StoreError(
                f"{found.store.where(found.entry.name)}: got {temporary.stat().st_size} bytes, "
                f"wanted the {found.entry.size} of its listing"
            )
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _is_whole(path: Path, entry: Entry) -> bool:
    try:
        return entry.size in (-1, path.stat().st_size)
    except OSError:
        return False


def _index(folder: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads((folder / "index.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _remove_interrupted(folder: Path) -> None:
    """Removes what a killed process has left, whose lock this one has now."""
    for leftover in folder.rglob(".*.tmp"):
        leftover.unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """Holds a lock, so that of several processes one fetches and the others use its files."""
    with (folder / ".lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("waiting for another process that fetches the same files ...")
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield
