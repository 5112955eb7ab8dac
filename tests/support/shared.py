"""What is made once, although several processes run the tests."""

from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock

# Longer than the slowest of them takes on a busy machine.
_SECONDS = 280.0


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Returns a folder that the first process to ask for it makes.

    Args:
        factory: Of this process.
        name: Of the folder.
        make: Fills the empty folder.
    """
    # With pytest-xdist each process has a folder in that of the run.
    base = factory.getbasetemp()
    root = base.parent if base.name.startswith("popen-") else base
    folder = root / f"shared-{name}"
    with FileLock(f"{folder}.lock", timeout=_SECONDS):
        done = folder / ".made"
        if not done.exists():
            # Where another's attempt failed, the folder is there: that fails as well.
            folder.mkdir()
            make(folder)
            done.touch()
    return folder
