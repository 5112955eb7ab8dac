"""Third-party packages that tests need are installed once, and kept."""

import pytest

from tests.support.environments import kept


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSERVE_TEST_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_made_once_for_a_key():
    made = []
    folders = [kept("some", key, made.append) for key in (["a", "b"], ["a", "b"], ["ab"], ["a"])]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    assert made == [folders[0], *folders[2:]]


def test_one_that_was_left_half_done_is_made_anew():
    def fails(folder):
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        kept("some", ["key"], fails)
    folder = kept("some", ["key"], lambda folder: (folder / "whole").touch())
    assert {path.name for path in folder.iterdir()} == {"whole", ".whole"}
