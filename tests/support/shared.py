"""Slow fixtures: made once for all processes of a test run, and cached from run to run."""

import functools
import hashlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from types import FunctionType

import pytest
from filelock import FileLock

from tests.support import ROOT

CACHE = ROOT / ".cache" / "tests"
# Files and folders that a training and an export depend on; tests/program/test_shared.py checks
# that none is missing.
_SOURCES = (
    "bundle", "common", "export", "latentserve/__init__.py", "latentserve/_cli",
    "latentserve/_files.py", "latentserve/_sftp.py", "latentserve/_store.py",
    "latentserve/_urls.py", "latentserve/_walk.py", "service/__init__.py", "service/errors.py",
    "service/models",
    "tests/support/blobs.py", "tests/support/onnx_pairs.py", "tests/support/shared.py",
    "tests/support/tiny_diffusers.py", "tests/support/tiny_pythae.py",
    "tests/support/untrained.py", "training",
)  # fmt: skip
_PACKAGES = ("numpy", "onnx", "onnxruntime", "onnxscript", "torch")
# Timeout of the locks: longer than the slowest fixture takes on a busy machine.
_SECONDS = 280.0


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that the first process to request it fills.

    Args:
        factory: pytest's temporary folders of this process.
        name: Name of the folder.
        make: Fills the empty folder.
    """
    # With pytest-xdist each process has its folder inside that of the run.
    base = factory.getbasetemp()
    root = base.parent if base.name.startswith("popen-") else base
    folder = root / f"shared-{name}"
    with FileLock(f"{folder}.lock", timeout=_SECONDS):
        done = folder / ".made"
        if not done.exists():
            # If another process failed to fill it, the folder exists and mkdir raises.
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


def cached(name: str, make: FunctionType, cache: Path = CACHE) -> Callable[[Path], None]:
    """Wraps `make` so that the folder is copied from an earlier run with the same sources.

    A test that changes its copy leaves the cache as it is. Where the files of an entry name the
    folder that they were made in, the copies name the new one.

    Args:
        name: Name of the folder, one in the cache for each.
        make: Fills the empty folder, by a training or an export; its file is one of the sources.
        cache: Folder of the cache.
    """

    def fill(folder: Path) -> None:
        entry = cache / f"{name}-{_digest(Path(make.__code__.co_filename))}"
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{name}.lock", timeout=_SECONDS):
            if entry.exists():
                _copy(entry, folder)
                return
            make(folder)
            for old in cache.glob(f"{name}-*"):
                shutil.rmtree(old)
            partial = cache / f"{name}-partial"
            shutil.copytree(folder, partial / "content")
            (partial / "made-in").write_text(str(folder))
            partial.rename(entry)

    return fill


def _copy(entry: Path, folder: Path) -> None:
    shutil.copytree(entry / "content", folder, dirs_exist_ok=True)
    before, after = (entry / "made-in").read_bytes(), str(folder).encode()
    for path in folder.rglob("*"):
        if path.is_file() and before in (content := path.read_bytes()):
            times = path.stat()
            path.write_bytes(content.replace(before, after))
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@functools.cache
def _digest(caller: Path) -> str:
    """Hash of the sources of trainings and exports, and of the packages they run on.

    Args:
        caller: The file of the function that fills the folder.
    """
    versions = [f"{name} {version(name)}" for name in _PACKAGES]
    digest = hashlib.sha256("\n".join([sys.version, platform.platform(), *versions]).encode())
    for path in (caller, *sources()):
        digest.update(f"\n{path.relative_to(ROOT)}\n".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def sources() -> Iterator[Path]:
    """The files that the content of a cached folder depends on."""
    for name in _SOURCES:
        found = sorted((ROOT / name).rglob("*")) if (ROOT / name).is_dir() else [ROOT / name]
        yield from (path for path in found if path.is_file() and path.suffix != ".pyc")
