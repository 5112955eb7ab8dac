"""Environments with third-party packages are installed once and cached."""

import pytest

from tests.support.environments import cached


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LATENTSERVE_TEST_CACHE", str(tmp_path / "cache"))


def test_a_folder_is_made_once_per_key():
    made = []
    folders = [cached("some", key, made.append) for key in (["a", "b"], ["a", "b"], ["ab"], ["a"])]
    assert folders[0] == folders[1]
    assert len(set(folders)) == 3
    assert made == [folders[0], *folders[2:]]


def test_an_incomplete_folder_is_made_again():
    def fails(folder):
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        cached("some", ["key"], fails)
    folder = cached("some", ["key"], lambda folder: (folder / "whole").touch())
    assert {path.name for path in folder.iterdir()} == {"whole", ".whole"}
