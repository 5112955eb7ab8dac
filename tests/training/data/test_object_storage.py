"""Data sets in object storage: the same as from disk, read once, changes and outages noticed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latentserve._store import Store
from tests.support.blobs import draw_blobs, write_blobs
from tests.support.s3_server import ObjectStorage
from training.data.datasets import Dataset, load_dataset
from training.data.locations import with_names
from training.data.spec import DataSpec
from training.errors import ConfigError, DataError, DataMissing

pytest_plugins = ["tests.support.object_storage"]

COUNT = 60


@pytest.fixture(autouse=True)
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The data folder, empty, of this test's own."""
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "data"))
    return tmp_path / "data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder of 60 pictures of 8 x 8 in three classes."""
    images, labels = draw_blobs(COUNT)
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / "photos" / f"class {label}" / f"{index:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0]).save(path)
    return tmp_path / "photos"


@pytest.fixture
def photos(s3: str, folder: Path, object_storage: ObjectStorage) -> str:
    """URL of the same pictures in object storage."""
    url = f"{s3}/photos"
    upload(folder, url)
    object_storage.requests.clear()
    return url


def upload(folder: Path, url: str) -> None:
    store = Store(url)
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path)


def load(source: str, **options: Any) -> tuple[Dataset, list[str]]:
    lines: list[str] = []
    dataset = load_dataset(DataSpec.parse(source, **options), report=lines.append)
    return dataset, lines


def assert_equal(one: Dataset, other: Dataset) -> None:
    for name in ("train", "validation", "test"):
        mine, theirs = getattr(one, name), getattr(other, name)
        np.testing.assert_array_equal(mine.images[:], theirs.images[:])
        np.testing.assert_array_equal(mine.labels, theirs.labels)
    assert (one.class_names, one.sha256) == (other.class_names, other.sha256)


def test_a_folder_by_url_is_the_folder_on_disk(photos: str, folder: Path) -> None:
    (there, lines), (here, _) = load(f"folder:{photos}/"), load(f"folder:{folder}")
    assert_equal(there, here)
    assert there.name == f"folder:{photos}"
    assert lines == [f"reading {COUNT} images from {photos}"]


def test_a_second_start_reads_no_object(
    photos: str, s3: str, object_storage: ObjectStorage
) -> None:
    first, _ = load(f"folder:{photos}")
    assert len(set(object_storage.reads(s3))) == COUNT
    object_storage.requests.clear()
    second, lines = load(f"folder:{photos}")
    assert object_storage.reads(s3) == []
    assert_equal(first, second)
    assert "decoded before" in lines[0]


def test_changed_new_and_removed_objects_are_found_out(photos: str, folder: Path) -> None:
    before, _ = load(f"folder:{photos}")
    # Of the same size, so that the stamp alone tells.
    path = folder / "class 0" / "000.png"
    other = folder / "class 0" / "003.png"
    raw, size = path.read_bytes(), len(path.read_bytes())
    path.write_bytes(raw + bytes(max(0, len(other.read_bytes()) - size)))
    store = Store(photos)
    store.put("class 0/000.png", path)
    store.put("class 0/900.png", other)
    store.delete("class 1/001.png")
    other.with_name("900.png").write_bytes(other.read_bytes())
    (folder / "class 1" / "001.png").unlink()
    after, lines = load(f"folder:{photos}")
    assert "the source has changed since: decoding again" in lines[0]
    assert after.sha256 != before.sha256
    assert_equal(after, load(f"folder:{folder}")[0])


def test_hidden_and_other_objects_are_ignored(photos: str) -> None:
    store = Store(photos)
    for name in (".thumbs/1.png", "class 0/.hidden.png", "notes.txt", "class 1/.DS_Store"):
        store.put(name, b"no picture")
    dataset, lines = load(f"folder:{photos}")
    assert sum(len(split.images) for split in (dataset.train, dataset.validation, dataset.test)) \
        == COUNT  # fmt: skip
    assert lines[0] == "ignored 1 .txt"


def test_damaged_pictures_are_refused_or_skipped(photos: str) -> None:
    Store(photos).put("class 0/000.png", b"no picture")
    refused = f"^{photos}: 1 of {COUNT} images cannot be used, the first: class 0/000.png: .* skip$"
    with pytest.raises(DataError, match=refused):
        load(f"folder:{photos}")
    dataset, _ = load(f"folder:{photos}", bad_files="skip")
    assert dataset.skipped == ("class 0/000.png",)


def test_an_outage_in_the_middle_ends_the_reading_and_leaves_nothing(
    photos: str, data: Path, object_storage: ObjectStorage
) -> None:
    stopped = []

    def stop(stage: str, done: int, _total: int) -> None:
        if (stage, done) == ("decoding", 1):
            object_storage.stop()
            stopped.append(done)

    # An outage makes no picture a bad file: those left out would be missing from then on.
    spec = DataSpec.parse(f"folder:{photos}", bad_files="skip")
    try:
        with pytest.raises(DataError) as caught:
            load_dataset(spec, progress=stop)
    finally:
        object_storage.start()
    assert stopped
    assert str(caught.value).startswith(f"{photos}/class ")
    assert "\n" not in str(caught.value)
    assert not [path for path in (data / "decoded").iterdir() if path.suffix != ".lock"]
    assert len(load_dataset(spec).train.images)


def test_what_is_not_there_is_one_line(s3: str) -> None:
    with pytest.raises(DataMissing, match=f"^{s3}/none: there are no objects$"):
        load(f"folder:{s3}/none")
    with pytest.raises(DataMissing, match=f"^{s3}/none.npy: No such file or directory$"):
        load(f"npy:{s3}/none.npy")
    Store(s3).put("texts/notes.txt", b"")
    with pytest.raises(DataError, match=rf"^{s3}/texts: no images, wanted .*; there are 1 \.txt$"):
        load(f"folder:{s3}/texts")
    with pytest.raises(DataError, match=f"^{s3}/texts: no objects named .parquet$"):
        load(f"parquet:{s3}/texts")
    with pytest.raises(DataMissing, match=r"^nosuch://x: Protocol not known: nosuch$"):
        load("folder:nosuch://x")
    with pytest.raises(
        ConfigError, match=r"^data: got the URL sftp://h/x with a password, a query"
    ):
        load("folder:sftp://me:secret@h/x")


def test_without_the_extra_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    for source in ("folder:s3://b/photos", "parquet:s3://b/rows", "npy:s3://b/images.npy"):
        with pytest.raises(
            ConfigError, match=r"fsspec is missing \(pip install 'latentserve\[cloud\]"
        ):
            load(source)


def test_a_source_by_url_is_kept_as_it_is_and_disclosed_by_its_last_name_alone() -> None:
    spec = DataSpec.parse("npy:s3://b/a/images.npy,labels.npy")
    assert spec.urls == ("s3://b/a/images.npy",)
    assert spec.source == f"npy:s3://b/a/images.npy,{Path.cwd() / 'labels.npy'}"
    assert DataSpec.from_json(spec.to_json()) == spec
    assert with_names(spec.source) == "npy:images.npy,labels.npy"
    assert str(DataSpec.parse("folder:s3://b/photos/")) == "folder:s3://b/photos"


def test_parquet_by_url_is_parquet_on_disk(
    s3: str, tmp_path: Path, object_storage: ObjectStorage
) -> None:
    pytest.importorskip("pyarrow")
    from tests.training.data.test_parquet import write_images

    folder = tmp_path / "rows"
    write_images(folder / "train-0.parquet", range(30), label=[seed % 2 for seed in range(30)])
    write_images(folder / "train-1.parquet", range(30, 40), label=[0, 1] * 5)
    upload(folder, f"{s3}/rows")
    Store(s3).put("rows/README.md", b"")
    here, _ = load(f"parquet:{folder}")
    there, lines = load(f"parquet:{s3}/rows")
    assert_equal(here, there)
    assert lines[0].startswith("fetching 2 files, ")
    assert there.name == f"parquet:{s3}/rows"

    object_storage.requests.clear()
    again, lines = load(f"parquet:{s3}/rows")
    assert object_storage.reads(s3) == []
    assert_equal(here, again)

    write_images(folder / "train-1.parquet", range(50, 60), label=[0, 1] * 5)
    Store(s3).put("rows/train-1.parquet", folder / "train-1.parquet")
    assert_equal(load(f"parquet:{folder}")[0], load(f"parquet:{s3}/rows")[0])
    assert set(object_storage.reads(s3)) == {"rows/train-1.parquet"}

    Store(s3).delete("rows/train-1.parquet")
    (folder / "train-1.parquet").unlink()
    assert_equal(load(f"parquet:{folder}")[0], load(f"parquet:{s3}/rows")[0])
    assert_equal(
        load(f"parquet:{folder}/train-0.parquet")[0],
        load(f"parquet:{s3}/rows/train-0.parquet")[0],
    )


def test_npy_and_idx_by_url_are_those_on_disk(s3: str, tmp_path: Path) -> None:
    images, labels = draw_blobs(COUNT)
    folder = tmp_path / "arrays"
    idx = write_blobs(folder, COUNT)
    np.save(folder / "images.npy", images)
    np.save(folder / "labels.npy", labels)
    upload(folder, f"{s3}/a")
    assert_equal(
        load(f"npy:{folder}/images.npy,{folder}/labels.npy")[0],
        load(f"npy:{s3}/a/images.npy,{folder}/labels.npy")[0],
    )
    there, _ = load(f"idx:{s3}/a/images,{s3}/a/labels")
    assert_equal(load(idx)[0], there)
    assert there.name == f"idx:{s3}/a/images,{s3}/a/labels"


def test_a_fetch_that_fails_is_one_line_and_goes_on_where_it_was(
    s3: str, tmp_path: Path, object_storage: ObjectStorage
) -> None:
    images, labels = draw_blobs(COUNT)
    np.save(tmp_path / "images.npy", images)
    np.save(tmp_path / "labels.npy", labels)
    Store(s3).put("images.npy", tmp_path / "images.npy")
    Store(s3).put("labels.npy", tmp_path / "labels.npy")
    spec = DataSpec.parse(f"npy:{s3}/images.npy,{s3}/labels.npy")

    def fail(_stage: str, _done: int, _total: int) -> None:
        raise OSError(28, "No space left on device", "index.json")

    with pytest.raises(DataError, match=r"^index.json: No space left on device, while npy:s3"):
        load_dataset(spec, progress=fail)
    object_storage.requests.clear()
    load_dataset(spec)
    assert len(set(object_storage.reads(s3))) <= 1


def test_of_two_processes_one_reads(
    photos: str, s3: str, object_storage: ObjectStorage, data: Path
) -> None:
    code = "import sys; from training.data.datasets import load_dataset; load_dataset(sys.argv[1])"
    children = [
        subprocess.Popen(
            [sys.executable, "-c", code, f"folder:{photos}"],
            env={**os.environ, "LATENTSERVE_DATA_DIR": str(data)},
        )
        for _ in range(2)
    ]
    assert [child.wait(60) for child in children] == [0, 0]
    # S3's client asks again where a connection was lost, so count names, and then their sum.
    reads = object_storage.reads(s3)
    assert len(set(reads)) == COUNT
    assert len(reads) < 2 * COUNT
