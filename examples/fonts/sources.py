"""Font files and their licences: of a folder, or of Debian packages that are not installed."""

import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from examples.fonts.licences import Unclear, licence_of
from training.errors import DataError

#: Lower-case suffixes of font files.
SUFFIXES = (".ttf", ".otf", ".ttc", ".otc", ".pfb")

# What a folder's licence may be in; the first that is there.
_LICENCE_FILES = ("OFL*", "LICEN[CS]E*", "COPYING*", "copyright")
# All of `fonts-*` in one call may be hundreds of megabytes.
_APT_SECONDS = 7200.0


@dataclass(frozen=True)
class FontFile:
    """A font file.

    Attributes:
        path: Where it is from, for messages: `PACKAGE/FILE`, or a path in the folder.
        package: The package, or the subfolder; families of one name are told from others by it.
        content: The file.
        licence: Its licences; empty if they are unclear.
        problem: What is unclear about the licence.
    """

    path: str
    package: str
    content: bytes
    licence: str
    problem: str = ""


@dataclass(frozen=True)
class Package:
    """A Debian package.

    Attributes:
        name: Its name.
        file: Name of the archive that `apt-get download` writes.
        size: Size of the archive in bytes.
    """

    name: str
    file: str
    size: int


def of_folder(folder: Path, licence: str = "") -> Iterator[FontFile]:
    """Yields the font files of a folder and its subfolders, in the order of their paths.

    A file's licence is that of the licence file beside it or in the nearest folder above.

    Args:
        folder: The folder.
        licence: The licence of all files, instead.

    Raises:
        DataError: There is no such folder.
        OSError: A file cannot be read.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: there is no such folder")
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in SUFFIXES and path.is_file():
            name, problem = licence, ""
            if not licence:
                name, problem = _clear(_licence_beside(path, folder))
            inside = path.relative_to(folder)
            yield FontFile(
                inside.as_posix(), inside.parent.as_posix(), path.read_bytes(), name, problem
            )


def choose_packages(largest: int, total: int) -> list[Package]:
    """The free `fonts-*` packages that apt knows, but the largest.

    Args:
        largest: Largest size of a package, in bytes.
        total: Largest size of all, in bytes; the smallest packages are taken first.

    Returns:
        The packages in the order of their names.

    Raises:
        DataError: There is no apt, or it fails.
    """
    names = sorted(_run("apt-cache", "pkgnames", "fonts-").split())
    found = []
    for record in _run("apt-cache", "show", "--no-all-versions", *names).split("\n\n"):
        fields = dict(line.split(": ", 1) for line in record.splitlines() if ": " in line)
        # The section of a package that is not free is `non-free/fonts` or `contrib/fonts`.
        if "Size" in fields and "/" not in fields.get("Section", ""):
            version = fields["Version"].replace(":", "%3a")
            file = f"{fields['Package']}_{version}_{fields['Architecture']}.deb"
            found.append(Package(fields["Package"], file, int(fields["Size"])))
    chosen = []
    for package in sorted(found, key=lambda each: (each.size, each.name)):
        total -= package.size
        if package.size > largest or total < 0:
            break
        chosen.append(package)
    return sorted(chosen, key=lambda each: each.name)


def download(packages: list[Package], cache: Path) -> None:
    """Downloads the archives that the cache does not hold. None is installed.

    Raises:
        DataError: apt-get fails.
    """
    cache.mkdir(parents=True, exist_ok=True)
    missing = [each.name for each in packages if not (cache / each.file).is_file()]
    if missing:
        _run("apt-get", "download", *missing, folder=cache)


def of_packages(packages: list[Package], cache: Path) -> Iterator[FontFile]:
    """Yields the font files of downloaded packages, by package and path; links are left out.

    Raises:
        DataError: A package is missing or damaged.
    """
    files = {each.name: cache / each.file for each in packages}
    for package in packages:
        fonts, text = _read(files[package.name])
        # The documentation of a package may be a link to that of a package of the same source.
        if text.startswith("-> "):
            target = text.removeprefix("-> ")
            text = _read(files[target])[1] if target in files else ""
        licence, problem = _clear(text)
        for path, content in sorted(fonts.items()):
            name = f"{package.name}/{PurePosixPath(path).name}"
            yield FontFile(name, package.name, content, licence, problem)


def _read(archive: Path) -> tuple[dict[str, bytes], str]:
    """Reads a package: its fonts by their paths, and its copyright file or `-> ` and its package.

    Raises:
        DataError: It is missing or damaged.
    """
    fonts: dict[str, bytes] = {}
    text = ""
    with _members(archive) as members:
        for member in members:
            path = PurePosixPath("/", member.name)
            if member.issym() and str(path.parent) == "/usr/share/doc":
                text = text or f"-> {PurePosixPath(member.linkname).name}"
            elif member.isfile() and (file := members.extractfile(member)) is not None:
                if path.match("/usr/share/doc/*/copyright"):
                    text = file.read().decode(errors="replace")
                elif path.suffix.lower() in SUFFIXES:
                    fonts[str(path)] = file.read()
    return fonts, text


@contextmanager
def _members(archive: Path) -> Iterator[tarfile.TarFile]:
    """Context manager for the files of a package, to be read in their order."""
    try:
        with subprocess.Popen(
            ["dpkg-deb", "--fsys-tarfile", str(archive)],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        ) as child:
            stream: IO[bytes] = child.stdout  # type: ignore[assignment]
            with tarfile.open(fileobj=stream, mode="r|") as members:
                yield members
            stream.read()
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{archive}: missing or damaged ({error})") from error


def _licence_beside(path: Path, root: Path) -> str:
    """Text of the licence file nearest to a font, up to the root; empty without one."""
    for folder in path.parents:
        for pattern in _LICENCE_FILES:
            for file in sorted(folder.glob(pattern)):
                if file.is_file() and file.suffix.lower() not in SUFFIXES:
                    return file.read_text(errors="replace")
        if folder == root:
            break
    return ""


def _clear(text: str) -> tuple[str, str]:
    """The licences of a text and what is unclear; one of the two is empty."""
    if not text:
        return "", "no licence file"
    try:
        return licence_of(text), ""
    except Unclear as unclear:
        return "", str(unclear)


def _run(*command: str, folder: Path | None = None) -> str:
    """Runs a command of Debian's; returns its output.

    Raises:
        DataError: It is missing, fails, or takes too long.
    """
    hint = "wanted Debian or a system like it, or fonts of your own (--fonts FOLDER)"
    try:
        done = subprocess.run(
            command, cwd=folder, capture_output=True, text=True, timeout=_APT_SECONDS, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{command[0]}: {error}, {hint}") from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"{command[0]} failed with status {done.returncode}: {last}, {hint}")
    return done.stdout
