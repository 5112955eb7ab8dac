"""What runs in a real browser, by a target of its own."""

from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.support.folder_marks import mark_folder

# On a busy machine a page takes more than the 5 seconds that are usual.
expect.set_options(timeout=20_000)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks everything here: these tests are for `make test-browser`."""
    mark_folder(items, Path(__file__).parent, pytest.mark.browser)
