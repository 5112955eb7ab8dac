"""The local copies of bundles whose home is a store, in a folder that several servers may share.

    objects/<SHA-256>                       files, each kept once
    bundles/<key>/<name>/<version>/         a bundle: hard links to objects, and its manifest
    locks/<key>, locks/<key>.fetch          held while a bundle is used, or is being fetched
    stores/                                 what a store had when it was last listed

The key of a bundle is the SHA-256 of its manifest and signature, and thereby stands for all of its
content: a version whose content changed in the store is another bundle here. Nothing is fsynced:
what a power cut damages is found when it is loaded, and fetched again.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import secrets
import shutil
import sys
from collections.abc import Iterator, Sequence, Set
from pathlib import Path

from bundle import MANIFEST, SIGNATURE, FileRef

_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """The folder for caches of the user, by the rule of the platform."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "latentserve"
    given = os.environ.get("XDG_CACHE_HOME", "")
    # By its specification, a relative path counts as none.
    base = Path(given) if given.startswith("/") else Path.home() / ".cache"
    return base / "latentserve"


def key_of(manifest: bytes, signature: bytes) -> str:
    """The key of a bundle with this manifest and signature, which is empty if there is none."""
    digest = hashlib.sha256(hashlib.sha256(manifest).digest())
    digest.update(hashlib.sha256(signature).digest())
    return digest.hexdigest()


class Cache:
    """Copies of bundles in a folder.

    Args:
        folder: The folder; made if there is none.
        max_bytes: Size in bytes that it is kept below, by removing bundles that have not been used
            for the longest. Bundles in use stay in any case.

    Raises:
        OSError: The folder cannot be made or written to.
    """

    def __init__(self, folder: Path, max_bytes: int):
        self.folder = folder
        self._max_bytes = max_bytes
        self._objects = folder / "objects"
        self._bundles = folder / "bundles"
        self._locks = folder / "locks"
        self._held: dict[str, int] = {}
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for path in (self._objects, self._bundles, self._locks):
            path.mkdir(exist_ok=True)

    def bundle(self, key: str) -> Path:
        """Folder of the bundle with a key; in it are `<name>/<version>/`."""
        return self._bundles / key

    def hold(self, key: str) -> None:
        """Protects a bundle from being removed by any process, until `release`."""
        if key not in self._held:
            # Never unlinked: a process that waits for the old file would lock another one.
            self._held[key] = _locked(self._locks / key, fcntl.LOCK_SH)
        os.utime(self._locks / key)

    def release(self, keep: Set[str]) -> None:
        """Ends the protection of all bundles but some, then keeps the cache below its bound."""
        for key in self._held.keys() - keep:
            os.close(self._held.pop(key))
        self.make_room(0)

    @contextlib.contextmanager
    def fetching(self, key: str) -> Iterator[None]:
        """Lets one process at a time fetch a bundle; the others wait."""
        lock = _locked(self._locks / f"{key}.fetch", fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(lock)

    @contextlib.contextmanager
    def adding(self, key: str) -> Iterator[Path]:
        """Makes the folder of a bundle, which appears once it is whole; within `fetching`.

        Yields:
            The hidden folder to fill.
        """
        for left in self._bundles.glob(f".{key}.*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        partial = self._bundles / f".{key}.{secrets.token_hex(6)}"
        partial.mkdir()
        try:
            yield partial
            partial.rename(self.bundle(key))
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def link(self, sha256: str, path: Path) -> bool:
        """Puts a file that is in the cache at a path; returns False if it is not there."""
        try:
            os.link(self._objects / sha256, path)
        except FileNotFoundError:
            return False
        return True

    def keep(self, sha256: str, path: Path) -> None:
        """Keeps a file, whose content has been checked, for other bundles too."""
        with contextlib.suppress(FileExistsError):
            os.link(path, self._objects / sha256)

    def discard_damaged(self, key: str, folder: Path, files: Sequence[FileRef]) -> None:
        """Removes a bundle and its objects if any of them is damaged; within `fetching`.

        Args:
            key: Its key.
            folder: Folder of its files.
            files: The files that its manifest names.
        """
        damaged = stored_key(folder) != key
        for ref in files:
            if _sha256(self._objects / ref.sha256) != ref.sha256:
                (self._objects / ref.sha256).unlink(missing_ok=True)
                damaged = True
            damaged = damaged or _sha256(folder / ref.file) != ref.sha256
        if damaged and self.bundle(key).exists():
            _log.warning("%s: damaged, to be fetched again", folder)
            self._remove(key)

    def make_room(self, size: int) -> None:
        """Removes bundles until `size` more bytes fit in, as far as none is in use."""
        lock = _locked(self.folder / "lock", fcntl.LOCK_EX)
        try:
            self._remove_partial()
            if self._size() + size <= self._max_bytes:
                return
            keys = [path.name for path in self._bundles.iterdir() if path.name[0] != "."]
            for key in sorted(keys, key=self._last_used):
                with _exclusively(self._locks / key) as unused:
                    if unused:
                        self._remove(key)
                self._remove_unlinked()
                if self._size() + size <= self._max_bytes:
                    return
        finally:
            os.close(lock)

    def _last_used(self, key: str) -> float:
        try:
            return (self._locks / key).stat().st_mtime
        except FileNotFoundError:
            return 0.0

    def _size(self) -> int:
        """Bytes of all files, each counted once."""
        sizes: dict[int, int] = {}
        for top in (self._objects, self._bundles):
            # Unlike `rglob`, it goes on where another process removes a folder.
            for folder, _, files in os.walk(top):
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        status = Path(folder, file).stat()
                        sizes[status.st_ino] = status.st_size
        return sum(sizes.values())

    def _remove(self, key: str) -> None:
        """Removes a bundle's folder, which is never seen with a part of its files."""
        gone = self._bundles / f".{key}.{secrets.token_hex(6)}"
        with contextlib.suppress(FileNotFoundError):
            self.bundle(key).rename(gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _remove_partial(self) -> None:
        """Removes what processes have left that were killed while they fetched."""
        for partial in self._bundles.glob(".*"):
            key = partial.name.split(".")[1]
            with _exclusively(self._locks / f"{key}.fetch") as orphaned:
                if orphaned:
                    shutil.rmtree(partial, ignore_errors=True)

    def _remove_unlinked(self) -> None:
        """Removes objects that are in no bundle. One that is linked just now stays in there."""
        for path in self._objects.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_nlink == 1:
                    path.unlink()


def stored_key(folder: Path) -> str:
    """The key of the bundle that a folder has; empty if it has none."""
    try:
        manifest = (folder / MANIFEST).read_bytes()
        signature = folder / SIGNATURE
        return key_of(manifest, signature.read_bytes() if signature.exists() else b"")
    except OSError:
        return ""


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def _locked(path: Path, kind: int) -> int:
    """Opens and locks a file; the lock ends when the descriptor is closed, or the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


@contextlib.contextmanager
def _exclusively(path: Path) -> Iterator[bool]:
    """Locks a file if nobody else has; yields whether it is locked."""
    try:
        descriptor = _locked(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
        return
    try:
        yield True
    finally:
        os.close(descriptor)
