"""Pytest plugin with a server of one tiny model, for tests of those who call it."""

from collections.abc import Iterator

import pytest

from tests.support.processes import Server
from tests.support.tiny import write_tiny


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of a server of `tiny`, host:port."""
    folder = tmp_path_factory.mktemp("tiny-server")
    write_tiny(folder / "models" / "tiny")
    with Server(folder / "models", folder / "log") as server:
        yield server.wait_until_serving().target
