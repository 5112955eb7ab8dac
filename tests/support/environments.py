"""Environments of third-party packages, made once for a set of requirements and kept.

They lie in `LATENTSERVE_TEST_CACHE`, else in the user's cache folder, each in a folder named by
the hash of all that its content depends on; what changes a requirement makes a new one. Any of
them may be deleted at any time.
"""

import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterable
from email.parser import BytesParser
from pathlib import Path

import platformdirs
from filelock import FileLock

from tests.support import ROOT

# What pip or npm may take on a busy machine; whoever waits for it waits as long.
_SECONDS = 280.0


def pins() -> str:
    """The exact versions that the Makefile installs, as pip reads constraints."""
    return (ROOT / "constraints.txt").read_text()


def python_with(requirements: Iterable[str], constraints: str) -> Path:
    """The interpreter of a virtual environment that holds packages and what they need.

    Args:
        requirements: As `pip install` takes them.
        constraints: Versions that pip may choose, in the format of a constraints file.
    """
    wanted = sorted(requirements)

    def make(folder: Path) -> None:
        (folder / "constraints.txt").write_text(constraints)
        _run([sys.executable, "-m", "venv", folder])
        _pip(folder / "bin" / "python", *wanted, constraints=folder / "constraints.txt")

    folder = kept("python", [sys.version, sys.base_prefix, constraints, *wanted], make)
    return folder / "bin" / "python"


def python_with_wheel(wheel: Path, folder: Path, constraints: str) -> Path:
    """The interpreter of a new environment that holds a wheel, what it needs, and pip.

    What it needs is kept from run to run; the wheel is installed each time, by pip.

    Args:
        wheel: The wheel.
        folder: Where to make the environment.
        constraints: Versions that pip may choose of what the wheel needs.
    """
    needed = python_with(_needs(wheel), constraints)
    _run([sys.executable, "-m", "venv", "--without-pip", folder])
    packages = site_packages(folder / "bin" / "python")
    (packages / "needed.pth").write_text(f"{site_packages(needed)}\n")
    python = folder / "bin" / "python"
    _pip(python, "--no-deps", str(wheel))
    _run([python, "-m", "pip", "check"])
    return python


def site_packages(python: Path) -> Path:
    """Where an environment has its packages."""
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


def node_modules(package: Path) -> Path:
    """The `node_modules` that `npm ci` makes of a folder's `package-lock.json`.

    Args:
        package: The folder.
    """
    files = [package / name for name in ("package.json", "package-lock.json")]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)

    def make(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)

    key = [node.stdout, platform.platform(), *(file.read_text() for file in files)]
    return kept("node", key, make) / "node_modules"


def kept(kind: str, key: list[str], make: Callable[[Path], None]) -> Path:
    """The folder of a key, which `make` fills where it is not there or was left half done."""
    override = os.environ.get("LATENTSERVE_TEST_CACHE")
    root = Path(override) if override else platformdirs.user_cache_path("latentserve") / "tests"
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    folder = root / f"{kind}-{name}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=_SECONDS):
        whole = folder / ".whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def _needs(wheel: Path) -> list[str]:
    """What a wheel needs without any of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [each for each in archive.namelist() if each.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(archive.read(name))
    return [
        requirement
        for requirement in metadata.get_all("Requires-Dist", [])
        if not re.search(r"\bextra\s*==", requirement)
    ]


def _pip(python: Path, *arguments: str, constraints: Path | None = None) -> None:
    # Our own pins are for our own environment.
    environment = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    if constraints is not None:
        environment["PIP_CONSTRAINT"] = str(constraints)
    quiet = ["install", "--quiet", "--disable-pip-version-check"]
    _run([python, "-m", "pip", *quiet, *arguments], env=environment)


def _run(
    command: list[str | Path], *, cwd: Path | None = None, env: dict[str, str] | None = None
) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=_SECONDS, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
