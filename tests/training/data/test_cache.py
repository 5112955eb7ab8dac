"""Decoded images on disk: reused, checked, made once, never half made."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from training.data import cache, decoding, pictures, pixel_file
from training.data.datasets import Dataset, load_dataset
from training.data.spec import DataSpec
from training.errors import DataError

LOAD = """\
import sys
from training.data.datasets import load_dataset
dataset = load_dataset(sys.argv[1], report=lambda line: print(line, flush=True))
print(len(dataset.train.images), dataset.train.images[0].sum(), flush=True)
"""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache folder, empty, below a data folder of this test's own."""
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data" / "decoded"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 60 pictures in two classes."""
    for seed in range(60):
        array = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        path = tmp_path / "pictures" / "ab"[seed % 2] / f"{seed}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
    return tmp_path / "pictures"


def load(folder: Path, **options: Any) -> tuple[Dataset, list[str]]:
    """Loads a folder; returns the lines that were reported, too."""
    lines: list[str] = []
    spec = DataSpec.parse(f"folder:{folder}", **options)
    return load_dataset(spec, report=lines.append), lines


def assert_same(one: Dataset, other: Dataset) -> None:
    for name in ("train", "validation", "test"):
        first, second = getattr(one, name), getattr(other, name)
        assert np.array_equal(first.images[:], second.images[:])
        assert np.array_equal(first.labels, second.labels)
    assert one.class_names == other.class_names
    assert (one.sha256, one.skipped) == (other.sha256, other.skipped)


def entry(data: Path) -> Path:
    """The one folder in the cache."""
    (found,) = (path for path in data.iterdir() if not path.name.startswith("."))
    return found


def test_pictures_are_decoded_once(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, lines = load(folder)
    assert lines == [f"reading 60 images from {folder}"]
    assert (entry(data) / "images").stat().st_size == 60 * 3 * 8 * 8
    monkeypatch.setattr(pictures, "decode", None)  # not called again
    second, lines = load(folder)
    assert lines == [f"60 images, decoded before into {entry(data)}"]
    assert_same(first, second)


def test_each_specification_has_its_own(data: Path, folder: Path) -> None:
    shapes = {
        load(folder, **options)[0].image_shape
        for options in ({}, {"image_size": 4}, {"channels": 1}, {"image_size": (4, 6)})
    }
    assert shapes == {(3, 8, 8), (3, 4, 4), (1, 8, 8), (3, 4, 6)}
    load(folder, image_size=(4, 6), fit="pad")
    load(folder, image_size=(4, 6), fit="pad", background="black")
    assert len([path for path in data.iterdir() if not path.name.startswith(".")]) == 6


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: (folder / "a" / "0.png").unlink(),
        lambda folder: (folder / "a" / "0.png").rename(folder / "b" / "0.png"),
        lambda folder: Image.new("RGB", (8, 8)).save(folder / "a" / "0.png"),
        lambda folder: Image.new("RGB", (8, 8)).save(folder / "a" / "more.png"),
        lambda folder: os.utime(folder / "a" / "0.png", ns=(0, 1)),
    ],
    ids=["removed", "moved", "changed", "added", "touched"],
)
def test_changed_files_are_noticed(
    change: Callable[[Path], None], data: Path, folder: Path
) -> None:
    load(folder)
    change(folder)
    changed, lines = load(folder)
    assert lines[0] == f"{entry(data)}: the source has changed since: decoding again"
    assert_same(changed, load(folder)[0])


def flip(path: Path, at: int) -> None:
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: flip(path / "images", 4321),
        lambda path: flip(path / "rows.npz", -40),
        lambda path: (path / "images").write_bytes((path / "images").read_bytes()[:-1]),
        lambda path: (path / "images").unlink(),
        lambda path: (path / "rows.npz").unlink(),
        lambda path: (path / "index.json").write_text("{"),
        lambda path: (path / "index.json").write_text("[]"),
        lambda path: (path / "index.json").write_text(
            json.dumps(json.loads((path / "index.json").read_text()) | {"shape": [60, 3, 8]})
        ),
        lambda path: (path / "index.json").unlink(),
    ],
    ids=[
        "pixel",
        "labels",
        "short",
        "no images",
        "no rows",
        "no JSON",
        "other JSON",
        "shape",
        "none",
    ],
)
def test_what_is_damaged_is_made_again(
    damage: Callable[[Path], None], data: Path, folder: Path
) -> None:
    whole, _ = load(folder)
    damage(entry(data))
    again, lines = load(folder)
    assert f"reading 60 images from {folder}" in lines
    assert_same(whole, again)
    assert load(folder)[1] == [f"60 images, decoded before into {entry(data)}"]


def test_a_kill_leaves_nothing_that_looks_whole(data: Path, folder: Path) -> None:
    slow = f"""\
import time
from training.data import pictures
decode = pictures.decode
def slowly(*arguments):
    time.sleep(0.05)
    return decode(*arguments)
pictures.decode = slowly
{LOAD}"""
    child = subprocess.Popen([sys.executable, "-c", slow, f"folder:{folder}"])
    deadline = time.monotonic() + 60
    while not list(data.glob(".*.tmp/images")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert list(data.glob(".*.tmp"))
    assert not [path for path in data.iterdir() if not path.name.startswith(".")]
    dataset, lines = load(folder)
    assert lines == [f"reading 60 images from {folder}"]
    assert len(dataset.train.images) > 30
    assert not list(data.glob(".*.tmp"))


def test_an_interrupt_removes_what_was_begun(
    data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(cache, "block_sums", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load(folder)
    assert [path.suffix for path in data.iterdir()] == [".lock"]


def test_what_other_processes_left_behind_is_removed_unless_they_still_run(
    data: Path, folder: Path
) -> None:
    data.mkdir(parents=True)
    for name in ("gone", "running"):
        (data / f".{name}.tmp").mkdir()
        (data / f".{name}.tmp" / "images").write_bytes(b"half")
    with (data / ".running.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        load(folder)
    assert [path.name for path in data.glob(".*.tmp")] == [".running.tmp"]


def test_processes_that_start_together_decode_once(data: Path, folder: Path) -> None:
    children = [
        subprocess.Popen(
            [sys.executable, "-c", LOAD, f"folder:{folder}"], stdout=subprocess.PIPE, text=True
        )
        for _ in range(4)
    ]
    said = [child.communicate()[0].splitlines() for child in children]
    assert [child.returncode for child in children] == [0] * 4
    assert sum(f"reading 60 images from {folder}" in lines for lines in said) == 1
    assert len({lines[-1] for lines in said}) == 1
    assert entry(data).is_dir()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES])
def test_images_that_cannot_be_kept_are_decoded_into_memory_if_they_fit(
    number: int, data: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted, _ = load(folder)
    full = OSError(number, os.strerror(number))

    def refuse(*_arguments: Any) -> None:
        raise full

    monkeypatch.setattr(pixel_file.os, "posix_fallocate", refuse)
    (entry(data) / "index.json").unlink()
    dataset, lines = load(folder)
    assert_same(dataset, wanted)
    why = f"decoded images cannot be kept in {data}: {os.strerror(number)}"
    assert why in lines
    assert not list(data.glob(".*.tmp"))
    monkeypatch.setattr(decoding, "IN_MEMORY", 1000)
    with pytest.raises(DataError) as caught:
        load(folder)
    assert str(caught.value) == (
        f"{why}; they take 0.0 GiB. Remedy: set LATENTSERVE_DATA_DIR to a folder that can be "
        "written and has as much free space, or a smaller --image-size"
    )


def test_a_data_folder_that_is_a_file_is_no_obstacle(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "file"))
    dataset, lines = load(folder)
    assert len(dataset.train.images) > 30
    assert lines[0].endswith("/file/decoded: Not a directory")


def test_colour_that_comes_late_widens_the_grey_images_before_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pixel_file, "_BLOCK_BYTES", 3 * 8 * 8 * 3)  # three images
    arrays = {}
    (tmp_path / "late").mkdir()
    for seed in range(40):
        shape = (8, 8, 3) if seed in (25, 31) else (8, 8)
        array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
        Image.fromarray(array).save(tmp_path / "late" / f"{seed:02}.png")
        arrays[seed] = array.transpose(2, 0, 1) if array.ndim == 3 else np.stack([array] * 3)
    dataset, _ = load(tmp_path / "late")
    found = np.concatenate([s.images for s in (dataset.train, dataset.validation, dataset.test)])
    assert {image.tobytes() for image in found} == {image.tobytes() for image in arrays.values()}
    assert (entry(data) / "images").stat().st_size == 40 * 3 * 8 * 8


def test_progress_is_shown_of_decoding_and_of_checking(data: Path, folder: Path) -> None:
    shown: list[tuple[str, int, int]] = []

    def progress(stage: str, done: int, total: int) -> None:
        shown.append((stage, done, total))

    load_dataset(f"folder:{folder}", progress=progress)
    assert shown == [
        *(("decoding", done, 60) for done in range(1, 61)),
        ("checking", 60, 60),
    ]
    shown.clear()
    load_dataset(f"folder:{folder}", progress=progress)
    assert shown == [("checking", 60, 60)]
    assert entry(data).is_dir()
