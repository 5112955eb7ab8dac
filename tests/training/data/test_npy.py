"""npy files as a data set: layouts, labels, groups, splits, mapping, damage."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from training.data import decoding
from training.data.datasets import Dataset, load_dataset
from training.data.rows import Rows
from training.data.spec import DataSpec
from training.data.splits import family_of
from training.errors import ConfigError, DataError, DataMissing


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
    for content in (b"", b"text", raw[:60], raw[:500], b"\x93NUMPY\x01\x00\x04\x00{(\n\n"):
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


FAMILIES = [f"family {index}" for index in range(60)]
#: Two groups of each family, one image of each in turn, five times.
NAMES = np.array([f"{name}@{face}" for name in FAMILIES for face in ("Bold", "Italic")] * 5)


def save_groups(folder: Path, names: NDArray[Any] = NAMES) -> tuple[Path, Path, Path]:
    """Images that are grey as their row, their labels and their groups."""
    rows = len(NAMES)
    images = np.zeros((rows, 6, 5), np.uint8)
    images[:] = (np.arange(rows) % 251)[:, None, None]
    arrays = {"images": images, "labels": np.arange(rows) % 5, "groups": names}
    files = [save(folder / f"{name}.npy", array) for name, array in arrays.items()]
    return files[0], files[1], files[2]


@pytest.mark.parametrize("options", [{}, {"image_size": (7, 4), "channels": 3}])
def test_images_of_a_group_have_its_number_and_those_of_a_family_one_split(
    options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "data"))
    files = save_groups(tmp_path)
    dataset = load(*files, **options)
    families: list[set[str]] = []
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.groups is not None
        assert split.groups.dtype == np.int64
        assert split.groups.shape == split.labels.shape
        names = np.unique(NAMES)[split.groups]
        # Each image is still beside its own group and label.
        grey = split.images[:, 0, 0, 0]
        found = {(int(row) % 251, str(name), row % 5) for row, name in enumerate(NAMES)}
        assert set(zip(grey.tolist(), names.tolist(), split.labels.tolist(), strict=True)) <= found
        families.append({family_of(name) for name in names})
        assert len(split.labels) == 10 * len(families[-1])
    assert sum(map(len, families)) == 60
    assert set.union(*families) == set(FAMILIES)
    assert min(len(families[1]), len(families[2])) >= 2
    assert len(families[0]) > 35
    assert set(dataset.sha256) == {"images.npy", "labels.npy", "groups.npy"}
    again = load(*files, **options)
    assert np.array_equal(again.train.groups, dataset.train.groups)
    assert np.array_equal(again.train.images[:], dataset.train.images[:])
    # The split is that of the family, whatever else there is.
    one = load(*save_groups(tmp_path, np.char.replace(NAMES, "@Bold", "@Light")), **options)
    assert np.array_equal(one.test.images[:], dataset.test.images[:])
    assert one.sha256 != dataset.sha256


def test_groups_are_kept_with_decoded_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(tmp_path / "data"))
    files = save_groups(tmp_path)
    wanted = load(*files, image_size=(7, 4))
    monkeypatch.setattr(decoding, "IN_MEMORY", 0)
    for _ in range(2):  # decoded into the cache, and found there
        found = load(*files, image_size=(7, 4))
        for name in ("train", "validation", "test"):
            one, other = getattr(found, name), getattr(wanted, name)
            assert isinstance(one.images, Rows)
            assert np.array_equal(one.images[:], other.images)
            assert np.array_equal(one.groups, other.groups)
    save_groups(tmp_path, np.char.replace(NAMES, "family 1", "other"))
    assert not np.array_equal(load(*files, image_size=(7, 4)).train.labels, wanted.train.labels)


@pytest.mark.parametrize(
    ("group", "family"),
    [
        ("DejaVu Sans@Bold", "DejaVu Sans"),
        ("DejaVu Sans", "DejaVu Sans"),
        ("me@home@Bold", "me@home"),
        ("@home", "@home"),
        ("home@", "home"),
    ],
)
def test_the_family_is_what_stands_before_the_last_at(group: str, family: str) -> None:
    assert family_of(group) == family


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (NAMES[:-1], r"groups \[599\] of <U16, wanted \[600\] of texts \(dtype U\)"),
        (NAMES[:, None], r"groups \[600, 1\] of <U16, wanted \[600\] of texts"),
        (np.arange(600), r"groups \[600\] of int64, wanted \[600\] of texts"),
        (np.array([*NAMES[:7], "", *NAMES[8:]]), "row 7 is '', wanted the name of the image's"),
        (np.array(["\ud800", *NAMES[1:]]), "groups that are no Unicode, wanted texts"),
        (np.array(["a", "b"] * 300), "none of its 2 families .* split, wanted at least one"),
        (NAMES.astype(object), "damaged or not an npy file"),
    ],
    ids=["too few", "column", "numbers", "empty", "surrogate", "two families", "objects"],
)
def test_wrong_groups_are_refused(names: NDArray[Any], message: str, tmp_path: Path) -> None:
    files = save_groups(tmp_path, names)
    with pytest.raises(DataError, match=message) as caught:
        load(*files)
    assert str(files[2]) in str(caught.value)


def test_groups_come_after_labels_and_nothing_after_groups(tmp_path: Path) -> None:
    images, labels, groups = save_groups(tmp_path)
    for files in (f"{images},,{groups}", f"{images},{labels},{groups},{tmp_path / 'more.npy'}"):
        with pytest.raises(ConfigError, match="or npy:IMAGES,LABELS,GROUPS"):
            DataSpec.parse(f"npy:{files}")
    with pytest.raises(DataMissing, match=r"nothing\.npy: there is no such file"):
        load(images, labels, tmp_path / "nothing.npy")
