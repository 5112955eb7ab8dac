"""Environments with third-party packages, installed once per set of requirements and cached.

The cache is `LATENTSERVE_TEST_CACHE`, by default the user's cache folder. An environment is a
folder named by the hash of everything that its content depends on: another requirement makes
another folder. Each can be deleted at any time.
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

# Timeout of pip and npm, and of the locks that other processes wait for.
_SECONDS = 280.0
# The same for an environment of many packages on a busy machine.
_LONG_SECONDS = 900.0


def pins() -> str:
    """The exact versions that the Makefile installs, in the format of a constraints file."""
    return (ROOT / "constraints.txt").read_text()


def python_with(requirements: Iterable[str], constraints: str) -> Path:
    """The interpreter of a virtual environment with packages and their dependencies.

    Args:
        requirements: As `pip install` takes them.
        constraints: Content of a constraints file for pip.
    """
    wanted = sorted(requirements)

    def make(folder: Path) -> None:
        (folder / "constraints.txt").write_text(constraints)
        _run([sys.executable, "-m", "venv", folder])
        _pip(folder / "bin" / "python", *wanted, constraints=folder / "constraints.txt")

    folder = cached("python", [sys.version, sys.base_prefix, constraints, *wanted], make)
    return folder / "bin" / "python"


def python_of_pins(pins: Path) -> Path:
    """The interpreter of a virtual environment with exactly the packages of a file.

    Args:
        pins: A file made by `pip freeze`.
    """

    def make(folder: Path) -> None:
        _run([sys.executable, "-m", "venv", folder])
        # Not compiled: most modules of large packages are never imported.
        files = ["--no-deps", "--no-compile", "--requirement", str(pins)]
        _pip(folder / "bin" / "python", *files, seconds=_LONG_SECONDS)

    key = [sys.version, sys.base_prefix, pins.read_text()]
    folder = cached("python", key, make, seconds=_LONG_SECONDS)
    return folder / "bin" / "python"


def python_with_wheel(wheel: Path, folder: Path, constraints: str) -> Path:
    """The interpreter of a new environment with a wheel, its dependencies and pip.

    The dependencies are cached; the wheel itself is installed by pip each time.

    Args:
        wheel: Path of the wheel.
        folder: Folder of the new environment.
        constraints: Content of a constraints file for the dependencies.
    """
    dependencies = python_with(_requirements(wheel), constraints)
    _run([sys.executable, "-m", "venv", "--without-pip", folder])
    packages = site_packages(folder / "bin" / "python")
    (packages / "dependencies.pth").write_text(f"{site_packages(dependencies)}\n")
    python = folder / "bin" / "python"
    _pip(python, "--no-deps", str(wheel))
    _run([python, "-m", "pip", "check"])
    return python


def site_packages(python: Path) -> Path:
    """The `site-packages` folder of an environment.

    Args:
        python: Its interpreter.
    """
    (found,) = python.parents[1].glob("lib/python*/site-packages")
    return found


def node_modules(package: Path) -> Path:
    """The `node_modules` that `npm ci` installs for a `package-lock.json`.

    Args:
        package: Folder of the `package-lock.json`.
    """
    files = [package / name for name in ("package.json", "package-lock.json")]
    node = subprocess.run(["node", "--version"], capture_output=True, text=True, check=True)

    def make(folder: Path) -> None:
        for file in files:
            shutil.copy(file, folder)
        _run(["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"], cwd=folder)

    key = [node.stdout, platform.platform(), *(file.read_text() for file in files)]
    return cached("node", key, make) / "node_modules"


def cached(
    kind: str, key: list[str], make: Callable[[Path], None], *, seconds: float = _SECONDS
) -> Path:
    """The cached folder of a key.

    Args:
        kind: Prefix of its name.
        key: Everything that its content depends on.
        make: Fills the empty folder; called if the folder is missing or was left incomplete.
        seconds: How long to wait for another process that fills it.
    """
    override = os.environ.get("LATENTSERVE_TEST_CACHE")
    root = Path(override) if override else platformdirs.user_cache_path("latentserve") / "tests"
    name = hashlib.sha256("\0".join(key).encode()).hexdigest()[:16]
    folder = root / f"{kind}-{name}"
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock", timeout=seconds):
        whole = folder / ".whole"
        if not whole.exists():
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            make(folder)
            whole.touch()
    return folder


def _requirements(wheel: Path) -> list[str]:
    """The requirements of a wheel, without those of its extras."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [path for path in archive.namelist() if path.endswith(".dist-info/METADATA")]
        metadata = BytesParser().parsebytes(archive.read(name))
    return [
        requirement
        for requirement in metadata.get_all("Requires-Dist", [])
        if not re.search(r"\bextra\s*==", requirement)
    ]


def _pip(
    python: Path,
    *arguments: str,
    constraints: Path | None = None,
    seconds: float = _SECONDS,
) -> None:
    # Constraints, as the Makefile exports them, are for the project's own environment.
    own = {"PIP_CONSTRAINT", "PIP_BUILD_CONSTRAINT"}
    environment = {key: value for key, value in os.environ.items() if key not in own}
    if constraints is not None:
        environment["PIP_CONSTRAINT"] = str(constraints)
    quiet = ["install", "--quiet", "--disable-pip-version-check"]
    _run([python, "-m", "pip", *quiet, *arguments], env=environment, seconds=seconds)


def _run(
    command: list[str | Path],
    *,
    cwd: Path | None = None,
    env: dict[str, str] | None = None,
    seconds: float = _SECONDS,
) -> None:
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=seconds, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
