"""Fixtures that are made once for all processes of a pytest-xdist run."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# More than the slowest of them takes on a busy machine.
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
