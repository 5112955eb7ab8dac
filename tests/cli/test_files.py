"""Atomic writes of files and folders, whatever their names and whoever else writes."""

import contextlib

import pytest

from latentserve._files import atomic_write, new_folder


def names_in(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_may_have_the_longest_name_there_is(tmp_path):
    path = tmp_path / ("x" * 251 + ".npy")
    atomic_write(path, b"content")
    assert path.read_bytes() == b"content"
    assert names_in(tmp_path) == [path.name]


def test_a_folder_appears_under_its_name_once_it_is_whole(tmp_path):
    with new_folder(tmp_path / "deep" / "made") as partial:
        (partial / "file").write_text("content")
        assert not (tmp_path / "deep" / "made").exists()
    assert names_in(tmp_path / "deep") == ["made"]
    assert (tmp_path / "deep" / "made" / "file").read_text() == "content"


def test_a_folder_that_fails_leaves_that_of_another_process_alone(tmp_path, monkeypatch):
    """In containers many processes have the number 1."""
    with new_folder(tmp_path / "made") as first:
        (first / "file").write_text("first")
        with contextlib.suppress(KeyError), new_folder(tmp_path / "made") as second:
            assert second != first
            (second / "file").write_text("second")
            raise KeyError
        # Nor is one touched whose name is drawn again.
        monkeypatch.setattr("secrets.token_hex", lambda _: first.name.split(".")[1])
        with pytest.raises(FileExistsError), new_folder(tmp_path / "made"):
            pass
        assert (first / "file").read_text() == "first"
    assert names_in(tmp_path) == ["made"]
    assert (tmp_path / "made" / "file").read_text() == "first"
