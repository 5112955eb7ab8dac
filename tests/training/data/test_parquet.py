"""Parquet files of encoded images as a data set: columns, labels, splits, damage."""

import hashlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from training.data.datasets import Dataset, load_dataset
from training.data.spec import DataSpec
from training.errors import DataError, DataMissing

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def picture(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 6, 3), dtype=np.uint8)


def png(array: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def structs(files: Sequence[bytes | None]) -> Any:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    return pa.array(
        [raw and {"bytes": raw, "path": f"{i}.png"} for i, raw in enumerate(files)], kind
    )


def write(path: Path, columns: dict[str, Any], features: Any = None, **options: Any) -> Path:
    table = pa.table(columns)
    if features is not None:
        info = {"huggingface": json.dumps({"info": {"features": features}})}
        table = table.replace_schema_metadata(info)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path


def write_images(path: Path, seeds: range, **columns: Any) -> Path:
    return write(path, {"image": structs([png(picture(seed)) for seed in seeds]), **columns})


def load(path: Path, **options: Any) -> Dataset:
    return load_dataset(DataSpec.parse(f"parquet:{path}", **options))


def seeds_of(split: Any, among: range) -> list[int]:
    known = {picture(seed).transpose(2, 0, 1).tobytes(): seed for seed in among}
    return [known[image.tobytes()] for image in split.images]


def test_the_published_layout_is_read_with_its_names_and_splits(tmp_path: Path) -> None:
    features = {
        "image": {"_type": "Image"},
        "label": {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"},
    }
    parts = {
        "train-00000-of-00002": range(30),
        "train-00001-of-00002": range(30, 60),
        "validation-00000-of-00001": range(60, 70),
        "test-00000-of-00001": range(70, 85),
    }
    for name, seeds in parts.items():
        columns = {
            "image": structs([png(picture(seed)) for seed in seeds]),
            "label": pa.array([seed % 3 for seed in seeds]),
        }
        write(tmp_path / "data" / f"{name}.parquet", columns, features, row_group_size=7)
    dataset = load(tmp_path)
    assert dataset.image_shape == (3, 8, 6)
    assert dataset.class_names == ("cat", "dog", "owl")
    for name, seeds in (
        ("train", range(60)),
        ("validation", range(60, 70)),
        ("test", range(70, 85)),
    ):
        split = getattr(dataset, name)
        assert seeds_of(split, range(85)) == list(seeds)
        assert split.labels.tolist() == [seed % 3 for seed in seeds]
    file = tmp_path / "data" / "test-00000-of-00001.parquet"
    name = "data/test-00000-of-00001.parquet"
    assert dataset.sha256[name] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert len(dataset.sha256) == 4


def test_one_file_is_split_by_position(tmp_path: Path) -> None:
    path = write_images(tmp_path / "train.parquet", range(50))
    dataset = load(path)
    assert dataset.class_names == ()
    assert seeds_of(dataset.test, range(50)) == [9, 19, 29, 39, 49]
    assert seeds_of(dataset.validation, range(50)) == [4, 14, 24, 34, 44]
    assert len(dataset.train.images) == 40
    assert set(dataset.sha256) == {"train.parquet"}


@pytest.mark.parametrize(
    "names",
    [
        ("train/0000", "test/0000"),
        ("train", "test"),
        ("a_train_1", "a_testing_1"),
        ("TRAIN-0", "Test-0"),
    ],
)
def test_splits_are_told_by_files_or_folders(names: tuple[str, str], tmp_path: Path) -> None:
    for name, seeds in zip(names, (range(30), range(30, 40)), strict=True):
        write_images(tmp_path / f"{name}.parquet", seeds)
    dataset = load(tmp_path)
    assert seeds_of(dataset.test, range(40)) == list(range(30, 40))
    assert seeds_of(dataset.validation, range(40)) == [4, 14, 24]


def test_files_that_cannot_be_used_are_left_out_and_named(tmp_path: Path) -> None:
    write_images(tmp_path / "train.parquet", range(40), label=pa.array([i % 2 for i in range(40)]))
    write_images(tmp_path / "test.parquet", range(40, 60), label=pa.array([-1] * 20))
    write_images(tmp_path / "extra.parquet", range(60, 80), label=pa.array([0] * 20))
    lines: list[str] = []
    dataset = load_dataset(DataSpec(f"parquet:{tmp_path}"), report=lines.append)
    assert lines[:3] == [
        "left out extra.parquet: its name tells no split",
        "left out test.parquet: it has no labels",
        "images: column image; labels: column label, 2 classes",
    ]
    assert seeds_of(dataset.test, range(80)) == [9, 19, 29, 39]
    assert set(dataset.sha256) == {"train.parquet"}


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (pa.array(["b", "a", "c", "a"] * 10), ("a", "b", "c")),
        (pa.array(["b", "a", "c", "a"] * 10).dictionary_encode(), ("a", "b", "c")),
        (pa.array([1, 0, 2, 0] * 10, pa.int8()), ("0", "1", "2")),
        (pa.array([1, 0, 2, 0] * 10, pa.uint8()), ("0", "1", "2")),
        (pa.array([1, 0, 2, 0] * 10, pa.uint64()).dictionary_encode(), ("0", "1", "2")),
        (pa.array([True, False, True, False] * 10), ("0", "1")),
        (pa.array([None] * 40, pa.int64()), ()),
        (pa.array([None] * 40, pa.string()), ()),
        (pa.array([0.5] * 40), ()),
    ],
    ids=[
        "texts",
        "dictionary",
        "numbers",
        "uint8",
        "uint64",
        "booleans",
        "nulls",
        "null texts",
        "not labels",
    ],
)
def test_labels_are_texts_or_numbers(labels: Any, names: tuple[str, ...], tmp_path: Path) -> None:
    dataset = load(write_images(tmp_path / "a.parquet", range(40), label=labels))
    assert dataset.class_names == names
    if names:
        assert dataset.train.labels[:2].tolist() == [1, 0]


@pytest.mark.parametrize("kind", ["binary", "large_binary"])
def test_a_column_of_bytes_alone_will_do(kind: str, tmp_path: Path) -> None:
    files = [png(picture(seed)) for seed in range(30)]
    path = write(tmp_path / "a.parquet", {"content": pa.array(files, getattr(pa, kind)())})
    assert len(load(path).train.images) == 24


def test_the_metadata_tell_which_column_is_meant(tmp_path: Path) -> None:
    files, masks = ([png(picture(seed)) for seed in range(at, at + 30)] for at in (0, 30))
    columns = {
        "mask": structs(masks),
        "photo": structs(files),
        "coarse": pa.array([0] * 30),
        "fine": pa.array([seed % 2 for seed in range(30)]),
    }
    with pytest.raises(DataError, match=r"2 columns of encoded images, wanted one"):
        load(write(tmp_path / "a.parquet", columns))
    features = {
        "photo": {"_type": "Image"},
        "fine": {"_type": "ClassLabel", "names": ["even", "odd"]},
    }
    dataset = load(write(tmp_path / "a.parquet", columns, features))
    assert dataset.class_names == ("even", "odd")
    assert seeds_of(dataset.test, range(60)) == [9, 19, 29]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"text": pa.array(["x"] * 30)}, r"no column of encoded images, wanted .* text \(string\)"),
        ({"image": structs([png(picture(0))] * 19)}, "19 usable images, wanted 20 or more"),
        (
            {"image": structs([png(picture(0))] * 30), "label": pa.array([0] * 29 + [None])},
            "rows without a label in column label, wanted a label in all rows",
        ),
        (
            {"image": structs([png(picture(0))] * 30), "label": pa.array([0] * 29 + [-7])},
            "column label: row 29 has the label -7, wanted 0 or more",
        ),
    ],
)
def test_unusable_columns_are_refused(
    columns: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        load(write(tmp_path / "a.parquet", columns))


def test_bad_rows_are_refused_or_skipped_by_name(tmp_path: Path) -> None:
    files: list[bytes | None] = [png(picture(seed)) for seed in range(60)]
    files[7], files[19] = b"not a picture", None
    path = write(tmp_path / "a.parquet", {"image": structs(files)})
    with pytest.raises(
        DataError, match=r"2 of 60 images cannot be used, the first: a\.parquet, row"
    ):
        load(path)
    dataset = load(path, bad_files="skip")
    assert dataset.skipped == ("a.parquet, row 7", "a.parquet, row 19")
    # The others keep their splits.
    assert seeds_of(dataset.test, range(60)) == [9, 29, 39, 49, 59]


def test_a_label_beyond_the_names_is_refused(tmp_path: Path) -> None:
    columns = {"image": structs([png(picture(0))] * 30), "label": pa.array([0, 1, 2] * 10)}
    features = {"label": {"_type": "ClassLabel", "names": ["a", "b"]}}
    with pytest.raises(DataError, match="row 2 has the label 2, wanted 0 to 1"):
        load(write(tmp_path / "a.parquet", columns, features))


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = write_images(tmp_path / "a.parquet", range(40))
    raw = path.read_bytes()
    middle = bytearray(raw)
    middle[60:80] = bytes(20)
    for content in (b"", b"text", raw[:-9], raw[100:]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"a\.parquet: damaged or not a Parquet file"):
            load(path)
    path.write_bytes(middle)
    with pytest.raises(DataError, match=r"a\.parquet"):
        load(path)
    with pytest.raises(DataMissing, match=r"nothing\.parquet: there is no such file"):
        load(tmp_path / "nothing.parquet")
    path.unlink()
    with pytest.raises(DataMissing, match=r"no files named \.parquet"):
        load(tmp_path)


def test_files_of_other_columns_are_refused(tmp_path: Path) -> None:
    write_images(tmp_path / "a.parquet", range(30))
    write(tmp_path / "b.parquet", {"img": structs([png(picture(0))] * 30)})
    with pytest.raises(
        DataError, match=r"b\.parquet: columns img and no labels, wanted those of a"
    ):
        load(tmp_path)


def test_test_files_alone_are_one_data_set_and_two_splits_need_training(tmp_path: Path) -> None:
    write_images(tmp_path / "test-0.parquet", range(30))
    assert len(load(tmp_path).train.images) == 24
    write_images(tmp_path / "validation-0.parquet", range(30, 60))
    with pytest.raises(DataError, match="files of test and validation alone, wanted some of train"):
        load(tmp_path)
