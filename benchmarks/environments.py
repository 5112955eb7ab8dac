"""A virtual environment for each third-party server, in `benchmarks/.envs/NAME`.

    python -m benchmarks.environments triton mlserver

creates two of them. Each gets exactly the packages that are pinned in
`benchmarks/requirements/NAME.txt`, a file made by `pip freeze` after that server was installed.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from benchmarks.processes import ROOT, ServerFailed

# Triton's python backend loads the libpython3.11 of Debian's python3.11, so its environment has
# to be created by that interpreter: apt-get install python3.11 python3.11-venv libpython3.11
_DEBIAN = Path("/usr/bin/python3.11")


def names() -> list[str]:
    """Names of the environments."""
    return sorted(path.stem for path in (ROOT / "benchmarks" / "requirements").glob("*.txt"))


def python(name: str) -> Path:
    """Path of an environment's interpreter; creates the environment if missing or outdated.

    Raises:
        ServerFailed: There are no requirements of that name, or the installation failed.
    """
    wanted = ROOT / "benchmarks" / "requirements" / f"{name}.txt"
    if not wanted.exists():
        raise ServerFailed(f"environment: got {name!r}, wanted one of {', '.join(names())}")
    folder = ROOT / "benchmarks" / ".envs" / name
    has = folder / "installed.txt"
    if not has.exists() or has.read_text() != wanted.read_text():
        _make(name, folder, wanted)
        shutil.copyfile(wanted, has)
    return folder / "bin" / "python"


def _make(name: str, folder: Path, wanted: Path) -> None:
    maker = _DEBIAN if name == "triton" else Path(sys.executable)
    if not maker.exists():
        raise ServerFailed(
            f"environment {name}: no {maker}; apt-get install python3.11 python3.11-venv "
            "libpython3.11"
        )
    shutil.rmtree(folder, ignore_errors=True)
    # constraints.txt is for the project's own environment.
    env = {key: value for key, value in os.environ.items() if key != "PIP_CONSTRAINT"}
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", "--no-deps"]
    for command in ([str(maker), "-m", "venv", str(folder)], [*pip, "-r", str(wanted)]):
        print(" ".join(command), file=sys.stderr, flush=True)
        if subprocess.run(command, env=env, check=False).returncode:
            raise ServerFailed(f"environment {name}: {' '.join(command)} failed")


def main() -> int:
    """Creates the environments named on the command line, or all of them."""
    for name in sys.argv[1:] or names():
        print(python(name))
    return 0


if __name__ == "__main__":
    sys.exit(main())
