"""A Docker engine for the tests in this folder, which are for `make test-compose`."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.compose.project import run
from tests.support import ROOT
from tests.support.folder_marks import mark_folder

# Brings up an engine on a machine without one; part of the workplace, not of the checkout.
ENGINE = ROOT.parent / "shared" / "docker-engine" / "start-docker-engine.sh"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything here."""
    mark_folder(items, Path(__file__).parent, pytest.mark.compose)


def engine_answers() -> bool:
    try:
        return run(["docker", "info"], timeout=30.0).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


@pytest.fixture(scope="session")
def engine() -> Iterator[None]:
    """An engine that answers; one that was started here is stopped again."""
    if engine_answers():
        yield
        return
    if not ENGINE.is_file():
        pytest.fail(f"no Docker engine answers, and {ENGINE} is not there to start one")
    started = run([ENGINE], timeout=900.0)
    assert started.returncode == 0, f"{ENGINE}:\n{started.stdout}\n{started.stderr}"
    yield
    run([ENGINE, "stop"])
