"""npy files as a data set: layouts, labels, splits, mapping, damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import decoding
from training.data.datasets import Dataset, load_dataset
from training.data.rows import Rows
from training.data.spec import DataSpec
from training.errors import DataError, DataMissing


def pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def save(path: Path, array: NDArray[Any]) -> Path:
    np.save(path, array)
    return path


def load(*files: Path, **options: Any) -> Dataset:
    return load_dataset(DataSpec.parse(f"npy:{','.join(map(str, files))}", **options))


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((40, 6, 5), (0, 1, 2)),
        ((40, 6, 5, 3), (0, 3, 1, 2)),
        ((40, 3, 6, 5), (0, 1, 2, 3)),
        ((40, 6, 5, 1), (0, 3, 1, 2)),
        ((40, 1, 6, 5), (0, 1, 2, 3)),
    ],
)
def test_every_layout_gives_the_same_images(
    shape: tuple[int, ...],
    axes: tuple[int, ...],
    in_memory: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images = pixels(*shape)
    if not in_memory:
        monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    dataset = load(save(tmp_path / "images.npy", images))
    wanted = images.transpose(axes).reshape(40, -1, 6, 5)
    rows = np.arange(40)
    for name, chosen in (
        ("train", ~np.isin(rows % 10, (4, 9))),
        ("validation", rows % 10 == 4),
        ("test", rows % 10 == 9),
    ):
        split = getattr(dataset, name)
        assert isinstance(split.images, np.ndarray if in_memory else Rows)
        assert np.array_equal(split.images[:], wanted[chosen])
        assert not split.labels.any()
    assert dataset.class_names == ()
    # Grey is repeated and colours are mixed, at any size.
    assert load(tmp_path / "images.npy", channels=3).image_shape == (3, 6, 5)
    assert load(tmp_path / "images.npy", channels=1, image_size=(4, 9)).image_shape == (1, 4, 9)


@pytest.mark.parametrize(
    ("labels", "names", "first"),
    [
        (np.arange(40) % 3, ("0", "1", "2"), 1),
        ((np.arange(40) % 3)[:, None].astype(np.uint8), ("0", "1", "2"), 1),
        (np.arange(40) % 2 == 1, ("0", "1"), 1),
        (np.array(["dog", "cat", "ant", "cat"] * 10), ("ant", "cat", "dog"), 1),
    ],
    ids=["numbers", "column", "booleans", "texts"],
)
def test_labels_are_numbers_or_texts(
    labels: NDArray[Any], names: tuple[str, ...], first: int, tmp_path: Path
) -> None:
    images = save(tmp_path / "images.npy", pixels(40, 6, 5))
    dataset = load(images, save(tmp_path / "labels.npy", labels))
    assert dataset.class_names == names
    assert dataset.train.labels[1] == first
    assert dataset.train.labels.dtype == np.int64
    assert set(dataset.sha256) == {"images.npy", "labels.npy"}


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (pixels(19, 6, 5), "19 images, wanted 20 or more"),
        (pixels(40, 6, 5).astype(np.float32), "of float32, wanted uint8, 0 to 255"),
        (pixels(40, 6), r"images \[40, 6\], wanted \[N, H, W\]"),
        (pixels(40, 0, 5), r"images \[40, 0, 5\], wanted .* none of them 0"),
        (pixels(40, 6, 5, 4), r"images \[40, 6, 5, 4\], wanted"),
        (pixels(40, 3, 6, 3), r"could be \[N, H, W, C\] or \[N, C, H, W\]"),
        (pixels(40, 1, 6, 1), r"could be \[N, H, W, C\] or \[N, C, H, W\]"),
        (pixels(40, 40, 3), r"could be \[N, H, W\] or one image \[H, W, C\]"),
        (np.asfortranarray(pixels(40, 6, 5)), "Fortran order, wanted C order"),
        (np.array([{}] * 40), "damaged or not an npy file"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_array_that_is_no_images_is_refused(
    array: NDArray[Any], message: str, tmp_path: Path
) -> None:
    path = save(tmp_path / "images.npy", array)
    with pytest.raises(DataError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.arange(39), r"images \[40, 1, 6, 5\] and labels \[39\] do not belong together"),
        (np.zeros((40, 2), int), r"labels \[40, 2\], wanted \[N\]"),
        (np.zeros(40), "labels float64, wanted whole numbers or texts"),
        (np.arange(40) - 1, "row 0 has the label -1, wanted 0 or more"),
        (np.arange(40) * 10**6, "39000001 classes, wanted at most 65536"),
    ],
)
def test_wrong_labels_are_refused(labels: NDArray[Any], message: str, tmp_path: Path) -> None:
    files = save(tmp_path / "images.npy", pixels(40, 6, 5)), save(tmp_path / "labels.npy", labels)
    with pytest.raises(DataError, match=message):
        load(*files)


def test_damaged_missing_and_other_files_are_named(tmp_path: Path) -> None:
    path = save(tmp_path / "images.npy", pixels(40, 6, 5))
    raw = path.read_bytes()
    for content in (b"", b"text", raw[:60], raw[:500]):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"images\.npy: damaged or not an npy file"):
            load(path)
    with pytest.raises(DataMissing, match=r"nothing\.npy: there is no such file"):
        load(tmp_path / "nothing.npy")
    np.savez(tmp_path / "many.npz", images=pixels(40, 6, 5))
    with pytest.raises(DataError, match="an archive of arrays, wanted a file of one array"):
        load(tmp_path / "many.npz")
    with pytest.raises(DataError, match="damaged or not an npy file"):
        load(tmp_path)


def test_the_checksums_are_those_of_the_files(tmp_path: Path) -> None:
    path = save(tmp_path / "images.npy", pixels(40, 6, 5))
    before = load(path).sha256
    assert load(path).sha256 == before
    changed = pixels(40, 6, 5)
    changed[7, 3, 2] ^= 1
    save(path, changed)
    assert load(path).sha256 != before
