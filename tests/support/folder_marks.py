"""Marks of whole folders of tests, each with a target of its own in the Makefile."""

from collections.abc import Iterable
from pathlib import Path

import pytest


def mark_folder(items: Iterable[pytest.Item], folder: Path, mark: pytest.MarkDecorator) -> None:
    """Marks the tests that lie in `folder`, at any depth: a conftest's hook is given all tests."""
    for item in items:
        if folder in item.path.parents:
            item.add_marker(mark)
