"""Folders in object storage, by URL: s3://bucket/models, gs, az, sftp, http, memory and file.

fsspec and its file systems do the work; this module adds what they do not promise alike: an
object appears whole or not at all, listings are never stale, an object can be created if and only
if it is not there (measured, not assumed), and every failure is a `StoreError` of one line.
"""

import contextlib
import errno
import os
import secrets
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, Self, runtime_checkable
from urllib.parse import urlsplit

from latentserve._files import atomic_write, beside, fsync_folder, reason
from latentserve._urls import without_secrets

# Objects of these stores can be seen while they are written, unless they are renamed at the end.
_RENAMING = {"sftp", "ssh", "ftp", "smb"}
_SSH = {"sftp", "ssh"}
# These list all objects below a name in one go.
_FLAT = {"abfs", "abfss", "az", "gcs", "gs", "memory", "s3", "s3a"}
_SPOOLED_BYTES = 2**24


class MissingStore(ImportError):
    """A package that a URL needs is not installed; the message says which."""


class StoreError(OSError):
    """A store cannot be reached, or refused; the message names the object and says why."""


@runtime_checkable
class _Reviving(Protocol):
    """A file system that has a connection, which may end; `latentserve._sftp` has it."""

    def revive(self) -> None:
        """Connects again if it has ended."""

    def rename_new(self, old: str, new: str) -> None:
        """Renames a file, unless there is one of that name."""

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """Makes a folder."""

    def exists(self, path: str) -> bool:
        """Whether there is a file."""

    def rm_file(self, path: str) -> None:
        """Removes a file."""


@dataclass(frozen=True)
class Entry:
    """An object of a store.

    Attributes:
        name: Its name, relative to the store's folder.
        size: Its size in bytes; -1 if the store does not say.
        stamp: Something that changes with its content: an ETag, a generation or a time. Empty if
            the store has nothing of the kind.
    """

    name: str
    size: int
    stamp: str


class Store:
    """A folder in object storage.

    Credentials are those that the store's own tools use, from the environment or their files.

    Args:
        url: URL of the folder, such as s3://bucket/models. It need not exist.

    Attributes:
        url: The URL without user, password and query, for messages.

    Raises:
        MissingStore: The package for such URLs is not installed.
        StoreError: The URL is malformed, or the store cannot be reached.
    """

    def __init__(self, url: str):
        self._given = url
        self._files: Any = None
        self.url = without_secrets(url).rstrip("/")
        try:
            import fsspec
        except ImportError as error:
            raise MissingStore(
                f"{self.url}: the package fsspec is missing (pip install 'latentserve[cloud]')"
            ) from error
        # Of those that are not safe for several threads at once, one works at a time.
        self._turn = threading.RLock() if _scheme(url) in _SSH else contextlib.nullcontext()
        try:
            with self._translated(""):
                if _scheme(url) in _SSH:
                    from latentserve._sftp import connected

                    self._files, root = connected(url)
                else:
                    self._files, root = fsspec.url_to_fs(url, **_options(url))
        except ImportError as error:
            raise MissingStore(
                f"{self.url}: a package is missing (pip install 'latentserve[cloud]'): {error}"
            ) from error
        self._root = root.rstrip("/")
        protocol = self._files.protocol
        self._protocols = {protocol} if isinstance(protocol, str) else set(protocol)

    def __reduce__(self) -> tuple[type[Self], tuple[str]]:
        return type(self), (self._given,)

    def entries(self, under: str = "") -> list[Entry]:
        """Objects at any depth, sorted by name.

        Args:
            under: Name of a folder; all of the store's by default.

        Returns:
            Entries, whose names are relative to the store's folder; none if there is no such
            folder.

        Raises:
            StoreError: The store cannot be reached, or refuses.
        """
        path = self._path(under) if under else self._root
        with self._translated(under):
            self._files.invalidate_cache()
            found = self._found(path)
        named = (
            Entry(name.removeprefix(self._root).lstrip("/"), _size(info), _stamp(info))
            for name, info in found.items()
        )
        return sorted(named, key=lambda entry: entry.name)

    def entry(self, name: str) -> Entry:
        """Size and stamp of an object.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The store cannot be reached, or refuses.
        """
        with self._translated(name):
            self._files.invalidate_cache()
            info = self._files.info(self._path(name))
        return Entry(name, _size(info), _stamp(info))

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Reads an object, or its bytes from `start` up to, but not including, `stop`.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The store cannot be reached, or refuses.
        """
        with self._translated(name):
            content: bytes = self._files.cat_file(self._path(name), start=start, end=stop)
        return content

    def open(self, name: str) -> IO[bytes]:
        """Opens an object for reading; its bytes are fetched as they are read.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The store cannot be reached, or refuses.
        """
        with self._translated(name):
            file: IO[bytes] = self._files.open(self._path(name), "rb")
            if not self._protocols & _SSH:
                return file
            # Read here, in this thread's turn.
            copy: IO[bytes] = tempfile.SpooledTemporaryFile(_SPOOLED_BYTES)  # noqa: SIM115
            with file:
                shutil.copyfileobj(file, copy, _SPOOLED_BYTES)
        copy.seek(0)
        return copy

    def is_folder(self, name: str = "") -> bool:
        """Whether there are objects below a name.

        Raises:
            StoreError: The store cannot be reached, or refuses.
        """
        with self._translated(name):
            self._files.invalidate_cache()
            there: bool = self._files.isdir(self._path(name) if name else self._root)
        return there

    def fetch(self, name: str, path: Path, stopped: Callable[[], bool] = lambda: False) -> None:
        """Writes an object's content to a local file, which is not whole if this raises.

        Args:
            name: Name of the object.
            path: The file.
            stopped: Polled meanwhile, where the store allows it; once it returns True, the rest is
                not fetched.

        Raises:
            FileNotFoundError: There is no such object.
            StoreError: The store cannot be reached, or refuses, or `stopped` returned True.
        """
        from fsspec.callbacks import Callback

        def check(*_: object) -> None:
            if stopped():
                raise StoreError(f"{self.where(name)}: stopped")

        with self._translated(name):
            watch = Callback(hooks={"stopped": check})
            self._files.get_file(self._path(name), str(path), callback=watch)

    def put(self, name: str, content: bytes | Path) -> None:
        """Writes an object, which appears whole or not at all; replaces one of that name.

        Args:
            name: Name of the object.
            content: Its bytes, or the local file that has them.

        Raises:
            StoreError: The store cannot be reached, or refuses.
        """
        path = self._path(name)
        with self._translated(name, writes=True):
            if "file" in self._protocols:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                atomic_write(
                    Path(path), content if isinstance(content, bytes) else content.read_bytes()
                )
                return
            if not self._protocols & _RENAMING:
                self._write(path, content)
                return
            folder = path.rpartition("/")[0]
            self._files.makedirs(folder, exist_ok=True)
            temporary = f"{folder}/.{secrets.token_hex(6)}.tmp"
            try:
                self._write(temporary, content)
                self._files.mv(temporary, path)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(temporary)
                raise

    def create(self, name: str, content: bytes) -> bool:
        """Writes a small object if there is none of that name.

        Of several that try at once, one succeeds, if the store `creates_once`.

        Returns:
            Whether it was written; False if there is one already.

        Raises:
            StoreError: The store cannot be reached, or refuses.
        """
        path = self._path(name)
        with self._translated(name, writes=True):
            try:
                if "file" in self._protocols:
                    _create_file(Path(path), content)
                elif self._protocols & _RENAMING:
                    self._create_by_renaming(path, content)
                else:
                    self._files.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
        return True

    def creates_once(self) -> bool:
        """Whether `create` refuses an object that is there: tried with one that is then removed.

        Raises:
            StoreError: The store cannot be reached, or refuses to be written.
        """
        name = f".{secrets.token_hex(8)}.probe"
        try:
            # What is there counts: a reply may be lost, and the request repeated by the client.
            self.create(name, b"1")
            return not self.create(name, b"2") and self.read(name) == b"1"
        except NotImplementedError:
            return False
        except StoreError as error:
            raise StoreError(str(error).replace(f"/{name}", "")) from error
        finally:
            with contextlib.suppress(OSError, NotImplementedError):
                self.delete(name)

    def delete(self, name: str) -> None:
        """Removes an object, if it is there.

        Raises:
            StoreError: The store cannot be reached, or refuses.
        """
        with self._translated(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(name))

    def where(self, name: str) -> str:
        """URL of an object, for messages."""
        return f"{self.url}/{name}" if name else self.url

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    def _write(self, path: str, content: bytes | Path) -> None:
        if isinstance(content, bytes):
            self._files.pipe_file(path, content)
        else:
            self._files.put_file(str(content), path)

    def _create_by_renaming(self, path: str, content: bytes) -> None:
        """Writes a file that appears whole, unless there is one: FileExistsError."""
        if not isinstance(self._files, _Reviving):
            raise NotImplementedError(f"{self.url}: cannot create a file if there is none")
        folder = path.rpartition("/")[0]
        self._files.makedirs(folder, exist_ok=True)
        temporary = f"{folder}/.{secrets.token_hex(6)}.tmp"
        try:
            self._write(temporary, content)
            try:
                self._files.rename_new(temporary, path)
            except OSError:
                # SFTP has no error of its own for a file that exists.
                if self._files.exists(path):
                    raise FileExistsError(path) from None
                raise
        except BaseException:
            with contextlib.suppress(Exception):
                self._files.rm_file(temporary)
            raise

    def _found(self, path: str) -> dict[str, dict[str, Any]]:
        """What fsspec knows of all files below a path, by their paths."""
        if self._protocols & _FLAT:
            try:
                found: dict[str, dict[str, Any]] = self._files.find(path, detail=True)
            except FileNotFoundError:
                return {}
            # The folder itself may be among them, if its first object was just written.
            return {name: info for name, info in found.items() if info.get("type") != "directory"}
        # Its own walk takes a folder that it cannot list for an empty one.
        found, folders = {}, [path]
        while folders:
            try:
                listed = self._files.ls(folders.pop(), detail=True)
            except FileNotFoundError:
                continue  # there is none, or it has been removed since
            for info in listed:
                if info["type"] == "directory":
                    folders.append(info["name"].rstrip("/"))
                else:
                    found[info["name"]] = info
        return found

    @contextlib.contextmanager
    def _translated(self, name: str, *, writes: bool = False) -> Iterator[None]:
        """Turns all failures into `StoreError`, but for those with a meaning of their own."""
        try:
            with self._turn:
                if isinstance(self._files, _Reviving):
                    self._files.revive()
                yield
        except (FileExistsError, ImportError, NotImplementedError, StoreError):
            raise
        except FileNotFoundError as error:
            if writes:  # there is no such bucket
                raise StoreError(f"{self.where(name)}: {reason(error)}") from error
            text = os.strerror(errno.ENOENT)
            raise FileNotFoundError(errno.ENOENT, text, self.where(name)) from error
        except OSError as error:
            raise StoreError(f"{self.where(name)}: {self._shown(reason(error))}") from error
        except Exception as error:  # botocore's, aiohttp's and paramiko's have no common base
            text = " ".join(str(error).split()) or type(error).__name__
            raise StoreError(f"{self.where(name)}: {self._shown(text)}") from error

    def _shown(self, text: str) -> str:
        """A message of others without the URL's secrets."""
        parts = urlsplit(self._given)
        for secret in filter(None, (parts.password, parts.query)):
            text = text.replace(secret, "***")
        return text


def _options(url: str) -> dict[str, Any]:
    """Options of the file system of a URL, where the defaults would wait for half an hour."""
    if _scheme(url) not in ("s3", "s3a"):
        return {}
    config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": 30}
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        # s3fs repeats what fails on top of botocore's own attempts, five by default.
        config["retries"] = {"total_max_attempts": 2}
    return {"config_kwargs": config}


def _scheme(url: str) -> str:
    return url.partition("://")[0].lower()


def _create_file(path: Path, content: bytes) -> None:
    """Writes a local file that appears whole, unless there is one: FileExistsError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = beside(path)
    try:
        atomic_write(temporary, content)
        path.hardlink_to(temporary)  # unlike a rename, replaces nothing
    finally:
        temporary.unlink(missing_ok=True)
    fsync_folder(path.parent)


def _size(info: dict[str, Any]) -> int:
    size = info.get("size")
    return -1 if size is None else int(size)


def _stamp(info: dict[str, Any]) -> str:
    for key in ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified"):
        if info.get(key):
            return str(info[key]).strip('"')
    return ""
