"""Folders of images: links are followed as in training, and what is ignored is named."""

import errno
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from common.pictures import SUFFIXES
from latentserve._cli.inputs import read_images
from latentserve._jobs.errors import SourceError
from latentserve._jobs.sources import Pictures, image_files
from latentserve._walk import walk
from tests.support.processes import Server
from tests.support.tiny import write_tiny


def write(path, value=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (4, 4), value).save(path, "JPEG" if path.suffix == ".jpg" else "PNG")


@pytest.fixture
def photos(tmp_path):
    """A folder with every sort of link: to a file, to a folder, to itself, to nothing."""
    folder = tmp_path / "photos"
    for value in range(3):
        write(tmp_path / "real" / f"{value}.png", value)
    write(folder / "b.jpg", 9)
    write(folder / "x.png" / "inside.png", 5)
    write(folder / ".hidden" / "no.png")
    write(folder / ".no.png")
    (folder / "linked").symlink_to("../real")
    (folder / "a.png").symlink_to("../real/0.png")
    (folder / "again").symlink_to(".")
    (folder / "linked" / "up").symlink_to("../photos")
    return folder


NAMES = ["a.png", "b.jpg", "linked/0.png", "linked/1.png", "linked/2.png", "x.png/inside.png"]


def test_links_are_followed_but_not_in_circles(photos):
    pictures = Pictures([photos])
    assert pictures.names() == NAMES
    assert pictures.rows == 6
    assert [str(file) for file in image_files([photos])] == [str(photos / name) for name in NAMES]
    assert len(read_images([photos])) == 6


def test_training_lists_the_same_files(photos):
    assert walk(photos, SUFFIXES).paths == NAMES


def test_a_folder_behind_several_links_is_listed_under_each(tmp_path):
    write(tmp_path / "pool" / "more" / "1.png", 1)
    (tmp_path / "shared").mkdir()
    write(tmp_path / "shared" / "2.png", 2)
    (tmp_path / "pool" / "shared").symlink_to("../shared")
    for name in ("a", "b"):
        (tmp_path / "photos" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "photos" / name).symlink_to("../pool")
    assert walk(tmp_path / "photos", SUFFIXES).paths == [
        "a/more/1.png", "a/shared/2.png", "b/more/1.png", "b/shared/2.png",
    ]  # fmt: skip


def test_folders_that_all_link_to_each_other_are_walked_in_polynomial_time(tmp_path, monkeypatch):
    names = [f"{number:02}" for number in range(12)]
    for name in names:
        write(tmp_path / name / "picture.png")
        for other in names:
            (tmp_path / name / other).symlink_to(f"../{other}")
    scandir, calls = os.scandir, []

    def counted(path):
        calls.append(path)
        assert len(calls) < 10_000
        return scandir(path)

    monkeypatch.setattr(os, "scandir", counted)
    paths = walk(tmp_path, SUFFIXES).paths
    assert len(set(paths)) == len(paths)
    for name in names:
        assert f"{name}/picture.png" in paths
        assert {f"{name}/{other}/picture.png" for other in names if other != name} <= set(paths)


def test_what_is_ignored_is_named(photos, caplog):
    for name in ("1.heic", "2.HEIC", "3.tif", "4.jfif", "labels.csv", "README", "\x1b.\x1b[1m"):
        (photos / name).write_bytes(b"")
    (photos / "unmounted").symlink_to("/nowhere/at/all")
    os.mkfifo(photos / "pipe.png")
    with caplog.at_level(logging.WARNING, "latentserve"):
        assert Pictures([photos]).names() == NAMES
    said = caplog.messages
    assert len(said) == 1
    assert said[0] == (
        f"{photos}: ignored 2 .heic, 1 (broken link), 1 .\\x1b[1m, 1 .csv, 1 .jfif, 3 others; "
        "wanted .png, .jpg, .jpeg, .webp"
    )
    counts = walk(photos, SUFFIXES).others
    assert counts == {
        ".heic": 2, ".tif": 1, ".jfif": 1, ".csv": 1, "without a suffix": 1, ".\\x1b[1m": 1,
        "(broken link)": 1, ".png": 1,
    }  # fmt: skip


def test_a_folder_of_other_files_says_what_there_is(tmp_path):
    (tmp_path / "1.heic").write_bytes(b"")
    with pytest.raises(SourceError, match=r"without PNG, JPEG and WebP files; there are 1 \.heic$"):
        image_files([tmp_path])


def test_a_broken_link_and_a_locked_folder_are_no_omissions(photos, monkeypatch):
    scandir = os.scandir

    def refusing(path):  # the tests may run as root, which may read everything
        if path.name == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    (photos / "locked").mkdir()
    with pytest.raises(SourceError, match="photos/locked: Permission denied"):
        image_files([photos])
    (photos / "locked").rmdir()
    (photos / "gone.png").symlink_to("nowhere.png")
    with pytest.raises(SourceError, match=r"photos/gone\.png: No such file or directory"):
        image_files([photos])


def test_a_job_encodes_what_lies_behind_links(photos, tmp_path):
    write_tiny(tmp_path / "models" / "tiny")
    (photos / "1.heic").write_bytes(b"")
    with Server(tmp_path / "models", tmp_path / "log") as server:
        server.wait_until_serving()
        done = subprocess.run(
            [sys.executable, "-m", "latentserve", "batch", "encode", str(photos),
             "--to", str(tmp_path / "job"), "--server", server.target],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (
        0, f"{photos}: ignored 1 .heic; wanted .png, .jpg, .jpeg, .webp\n",
    )  # fmt: skip
    assert np.load(tmp_path / "job" / "mean-00000.npy").shape == (6, 3)
