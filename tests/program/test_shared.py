"""The cache of trainings and exports that tests share, and its invalidation."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.shared import cached, sources

IMPORTED = """
import sys, export.cli, tests.support.untrained, training.cli
print(*(module.__file__ for module in sys.modules.values() if getattr(module, "__file__", None)))
"""


def test_the_sources_are_all_that_a_training_and_an_export_import():
    done = subprocess.run(
        [sys.executable, "-c", IMPORTED], capture_output=True, text=True, check=True, cwd=ROOT
    )
    ours = {Path(path) for path in done.stdout.split() if Path(path).is_relative_to(ROOT)}
    ours = {path for path in ours if ".venv" not in path.parts and path.parent != ROOT / "tests"}
    assert len(ours) > 30
    assert ours - {ROOT / "tests" / "support" / "__init__.py"} <= set(sources())


def test_a_folder_is_made_once_and_copied_with_its_own_name_in_its_files(tmp_path):
    made = []

    def make(folder: Path) -> None:
        made.append(folder)
        (folder / "deep").mkdir()
        (folder / "deep" / "where").write_text(f"it lies in {folder}")
        os.utime(folder / "deep" / "where", (7, 7))

    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        cached("some", make, tmp_path / "cache")(folder)
        assert (folder / "deep" / "where").read_text() == f"it lies in {folder}"
        assert (folder / "deep" / "where").stat().st_mtime == 7
    assert made == [tmp_path / "first"]


def test_a_folder_of_other_sources_is_removed_when_a_new_one_is_made(tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    for digest in ("old", "new"):
        monkeypatch.setattr("tests.support.shared._digest", lambda _, digest=digest: digest)
        folder = tmp_path / digest
        folder.mkdir()
        cached("some", lambda folder: (folder / "file").touch(), cache)(folder)
    assert {path.name for path in cache.iterdir()} == {"some-new", "some.lock"}


def test_a_folder_that_could_not_be_made_is_not_kept(tmp_path):
    def fails(folder: Path) -> None:
        (folder / "half").touch()
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        cached("some", fails, tmp_path / "cache")(tmp_path)
    (tmp_path / "again").mkdir()
    cached("some", lambda folder: (folder / "whole").touch(), tmp_path / "cache")(
        tmp_path / "again"
    )
    assert [path.name for path in (tmp_path / "again").iterdir()] == ["whole"]
