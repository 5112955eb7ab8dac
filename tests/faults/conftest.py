"""What the faults share: the models, the right answers, Envoy, and the table at the end."""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.answers import Answers
from tests.faults.envoy import envoy_binary
from tests.faults.fleet import Fleet
from tests.faults.table import Table
from tests.support import ROOT
from tests.support.folder_marks import mark_folder

_TABLE = pytest.StashKey[Table]()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything here: these tests are for `make test-faults`, or `make test-long`."""
    mark_folder(items, Path(__file__).parent, pytest.mark.faults)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Prints the table."""
    if text := config.stash.get(_TABLE, Table()).markdown():
        terminalreporter.section("calls / failed calls under faults")
        terminalreporter.write_line(text)


@pytest.fixture(scope="session")
def table(pytestconfig: pytest.Config) -> Table:
    """The table that is printed at the end."""
    return pytestconfig.stash.setdefault(_TABLE, Table())


@pytest.fixture(scope="session")
def envoy() -> Path:
    """The program of Envoy."""
    return envoy_binary()


@pytest.fixture
def models(tmp_path: Path) -> Path:
    """A models folder with one of the shipped models, which a test may change."""
    folder = tmp_path / "models"
    shutil.copytree(ROOT / "models" / "mnist2d", folder / "mnist2d")
    return folder


@pytest.fixture(scope="session")
def right(tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The right answers: those of a server that nothing disturbs."""
    folder = tmp_path_factory.mktemp("right")
    shutil.copytree(ROOT / "models" / "mnist2d", folder / "models" / "mnist2d")
    with Fleet(folder / "models", folder, 1) as fleet:
        assert fleet.is_answering(0)
        return Answers.of(fleet.addresses[0], folder / "job")


@pytest.fixture(autouse=True)
def _descriptors() -> Iterator[None]:
    """Raises this process's own limit of open files, since peers hold many sockets."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 20_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
