"""Models folders for servers with workers."""

from pathlib import Path

import pytest

from tests.support.tiny import write_tiny


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tiny(tmp_path / "models" / "one", seed=1)
    return tmp_path / "models"


@pytest.fixture
def wide(tmp_path) -> Path:
    """A model of images so large that an unread stream of them stays in flight."""
    write_tiny(tmp_path / "models" / "wide", shape=(3, 64, 64), dim=8)
    return tmp_path / "models"
