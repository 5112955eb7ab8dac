"""A pytest plugin: what the fixtures make with torch is taken from a folder in which it is.

`LATENTSERVE_TEST_MADE` names it. For environments without torch, as in
tests/program/test_dependencies.py.
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import shared


def _made(_factory: pytest.TempPathFactory, name: str, _make: Callable[[Path], None]) -> Path:
    return Path(os.environ["LATENTSERVE_TEST_MADE"]) / name


# Before a conftest.py imports it.
shared.made_once = _made
