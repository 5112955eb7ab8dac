"""Data sets: the splits of MNIST and of IDX files, their sizes and channels, binarization."""

import gzip
import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from tests.training.data.tiny_source import CONTENTS, NAMES, idx, put, tiny_source
from training.data import array_files, decoding
from training.data.datasets import Dataset, Split, load_dataset
from training.data.download import read_files
from training.data.rows import Rows
from training.data.sources import MNIST, SOURCES
from training.data.spec import DataSpec
from training.data.targets import binarize
from training.errors import ConfigError, DataError, DataMissing


def small_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Registers the tiny source as `mnist`, with all but two images for validation."""
    monkeypatch.setitem(SOURCES, "mnist", tiny_source())
    monkeypatch.setattr(array_files, "MAX_VALIDATION", 4)
    put(root / "tiny", CONTENTS)


def test_cached_files_are_read_and_hashed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_mnist(tmp_path, monkeypatch)
    reads: list[str] = []
    hashed: list[int] = []
    read_bytes, sha256 = Path.read_bytes, hashlib.sha256

    def counted_read(path: Path) -> bytes:
        reads.append(path.name)
        return read_bytes(path)

    def counted_sha256(raw: bytes) -> object:
        hashed.append(len(raw))
        return sha256(raw)

    monkeypatch.setattr(Path, "read_bytes", counted_read)
    monkeypatch.setattr(hashlib, "sha256", counted_sha256)
    load_dataset("mnist", tmp_path)
    assert reads == list(NAMES)
    assert len(hashed) == len(NAMES)


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    return load_dataset("mnist")


def test_mnist_has_its_splits_shapes_and_checksums(mnist: Dataset) -> None:
    sizes = {"train": 55_000, "validation": 5_000, "test": 10_000}
    for name, size in sizes.items():
        split = getattr(mnist, name)
        assert (split.images.shape, split.images.dtype) == ((size, 1, 28, 28), np.uint8)
        assert (split.labels.shape, split.labels.dtype) == ((size,), np.int64)
        assert np.unique(split.labels).tolist() == list(range(10))
    assert mnist.image_shape == (1, 28, 28)
    assert mnist.class_names == tuple("0123456789")
    assert mnist.sha256 == {file.name: file.sha256 for file in MNIST.files}


def test_mnist_is_in_its_published_order(mnist: Dataset) -> None:
    assert mnist.train.labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]
    assert mnist.validation.labels[-2:].tolist() == [6, 8]
    assert mnist.train.images.max() == 255
    assert abs(mnist.train.images.mean() / 255 - 0.1307) < 0.001


def test_an_unknown_data_set_is_refused_with_a_list_of_the_sources() -> None:
    with pytest.raises(ConfigError, match=r"got 'emnist', wanted one of fashion-mnist, mnist, fol"):
        load_dataset("emnist")


def test_a_data_set_too_small_to_split_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(SOURCES, "mnist", tiny_source())
    put(tmp_path / "tiny", CONTENTS)
    with pytest.raises(DataError, match="6 training images, wanted over 5000"):
        load_dataset("mnist", tmp_path)


def test_mnist_at_another_size_is_the_same_digits(mnist: Dataset) -> None:
    resized = load_dataset(DataSpec("mnist", image_size=(8, 8)))
    assert resized.image_shape == (1, 8, 8)
    for name in ("train", "validation", "test"):
        before, after = getattr(mnist, name), getattr(resized, name)
        assert np.array_equal(before.labels, after.labels)
        assert after.images.shape == (len(before.images), 1, 8, 8)
        # The mean brightness of each image stays, so the order has not changed.
        ink = [split.images[:500].mean(axis=(1, 2, 3)) for split in (before, after)]
        assert np.corrcoef(ink)[0, 1] > 0.95
    assert resized.sha256 == mnist.sha256


def test_grey_images_are_repeated_for_each_channel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_mnist(tmp_path, monkeypatch)
    grey = load_dataset("mnist", tmp_path)
    rgb = load_dataset(DataSpec("mnist", channels=3), tmp_path)
    assert rgb.image_shape == (3, 4, 4)
    for channel in range(3):
        assert np.array_equal(rgb.test.images[:, [channel]], grey.test.images)


def test_converted_images_that_fill_memory_go_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_mnist(tmp_path, monkeypatch)
    spec = DataSpec("mnist", (5, 6), 3)
    inside = load_dataset(spec, tmp_path)
    assert isinstance(inside.train.images, np.ndarray)
    assert not (tmp_path / "decoded").exists()
    monkeypatch.setattr(decoding, "IN_MEMORY", 100)
    for _ in range(2):
        outside = load_dataset(spec, tmp_path)
        for name in ("train", "validation", "test"):
            one, other = getattr(inside, name), getattr(outside, name)
            assert isinstance(other.images, Rows)
            assert np.array_equal(other.images[:], one.images)
            assert np.array_equal(other.labels, one.labels)
    assert len(list((tmp_path / "decoded").iterdir())) == 2  # the images and their lock


def write_idx(folder: Path, name: str, array: NDArray[np.uint8], gzipped: bool = False) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    path = folder / (f"{name}.gz" if gzipped else name)
    path.write_bytes(gzip.compress(idx(array)) if gzipped else idx(array))
    return path


def numbered(count: int, side: int = 8) -> NDArray[np.uint8]:
    """Images whose pixels all equal their position in the file."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8)[:, None, None], (count, side, side))


def places(split: Split) -> list[int]:
    first = split.images[:, 0, 0, 0]
    assert (split.images == first[:, None, None, None]).all()
    return [int(place) for place in first]


@pytest.mark.parametrize("gzipped", [False, True], ids=["plain", "gzipped"])
def test_an_idx_pair_is_split_by_position(gzipped: bool, tmp_path: Path) -> None:
    images = write_idx(tmp_path, "images", numbered(200), gzipped)
    labels = write_idx(tmp_path, "labels", (np.arange(200) % 4).astype(np.uint8), gzipped)
    dataset = load_dataset(f"idx:{images},{labels}")
    assert dataset.image_shape == (1, 8, 8)
    assert places(dataset.test) == list(range(9, 200, 10))
    left = [place for place in range(200) if place % 10 != 9]
    assert places(dataset.train) == left[:-18]
    assert places(dataset.validation) == left[-18:]
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.labels.dtype == np.int64
        assert split.labels.tolist() == [place % 4 for place in places(split)]
    assert dataset.class_names == ("0", "1", "2", "3")
    assert dataset.sha256 == {
        name: hashlib.sha256(idx(array)).hexdigest()
        for name, array in (
            ("images", numbered(200)),
            ("labels", (np.arange(200) % 4).astype(np.uint8)),
        )
    }


def test_idx_images_alone_have_no_labels(tmp_path: Path) -> None:
    dataset = load_dataset(f"idx:{write_idx(tmp_path, 'images', numbered(50))}")
    assert dataset.class_names == ()
    assert dataset.train.labels.shape == (len(dataset.train.images),)
    assert not dataset.train.labels.any()


@pytest.mark.parametrize("labelled", [True, False])
def test_an_idx_test_pair_is_the_test_split(labelled: bool, tmp_path: Path) -> None:
    def pair(folder: str, count: int, shift: int) -> str:
        images = write_idx(tmp_path / folder, "images", numbered(count))
        labels = (np.arange(count) + shift).astype(np.uint8) % 3
        path = write_idx(tmp_path / folder, "labels", labels) if labelled else ""
        return f"{images},{path}"

    dataset = load_dataset(f"idx:{pair('train', 100, 0)},{pair('test', 7, 1)}")
    assert places(dataset.train) == list(range(90))
    assert places(dataset.validation) == list(range(90, 100))
    assert places(dataset.test) == list(range(7))
    assert dataset.test.labels.tolist() == ([1, 2, 0, 1, 2, 0, 1] if labelled else [0] * 7)
    assert dataset.class_names == (("0", "1", "2") if labelled else ())
    names = ["images", "labels"] if labelled else ["images"]
    assert list(dataset.sha256) == [f"{folder}/{n}" for folder in ("train", "test") for n in names]


def test_mnist_as_idx_files_is_mnist(mnist: Dataset) -> None:
    paths = ",".join(str(path) for path, _ in read_files(MNIST))
    dataset = load_dataset(f"idx:{paths}")
    for name in ("train", "validation", "test"):
        assert np.array_equal(getattr(dataset, name).images, getattr(mnist, name).images)
        assert np.array_equal(getattr(dataset, name).labels, getattr(mnist, name).labels)
    assert dataset.sha256 == mnist.sha256


def test_idx_images_that_are_not_square_are_cropped_to_their_centre(tmp_path: Path) -> None:
    image = np.zeros((20, 16), np.uint8)
    image[2:18] = 200
    path = write_idx(tmp_path, "images", np.repeat(image[None], 30, axis=0))
    assert load_dataset(f"idx:{path}").image_shape == (1, 20, 16)
    resized = load_dataset(DataSpec(f"idx:{path}", image_size=(4, 4)))
    assert resized.image_shape == (1, 4, 4)
    # Resized without cropping, the first row would be 120.
    assert resized.train.images.min() > 170


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        ((19, 8, 8), (19,), "19 images, wanted 20 or more"),
        ((30, 8, 8), (29,), r"images \[30, 8, 8\] and labels \[29\] do not belong together"),
        ((30, 8, 8), (0,), r"images \[30, 8, 8\] and labels \[0\] do not belong together"),
        ((30, 8, 8), (30, 2), r"labels \[30, 2\] do not belong together"),
        ((30, 64), (30,), r"images \[30, 64\], wanted \[N, H, W\]"),
        ((30, 8, 0), (30,), r"images \[30, 8, 0\], wanted"),
    ],
)
def test_idx_files_of_wrong_shapes_are_refused(
    images: tuple[int, ...], labels: tuple[int, ...], message: str, tmp_path: Path
) -> None:
    paths = [
        write_idx(tmp_path, "images", np.zeros(images, np.uint8)),
        write_idx(tmp_path, "labels", np.zeros(labels, np.uint8)),
    ]
    with pytest.raises(DataError, match=message):
        load_dataset(f"idx:{paths[0]},{paths[1]}")


@pytest.mark.parametrize("test", [numbered(9, side=6), numbered(0)], ids=["other size", "empty"])
def test_idx_test_images_unlike_the_training_images_are_refused(
    test: NDArray[np.uint8], tmp_path: Path
) -> None:
    paths = [write_idx(tmp_path, "a", numbered(40)), write_idx(tmp_path, "b", test)]
    with pytest.raises(DataError, match=r"test images \[\d, \d, \d\], wanted one or more like"):
        load_dataset(f"idx:{paths[0]},,{paths[1]},")


def test_missing_idx_files_are_missing_data_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=f"{tmp_path}/nothing: No such file"):
        load_dataset(f"idx:{tmp_path}/nothing")


@given(
    hnp.arrays(np.uint8, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9)),
    st.integers(0, 2**64 - 1),
)
def test_binarize_is_deterministic_and_keeps_black_and_white(
    images: NDArray[np.uint8], seed: int
) -> None:
    bits = binarize(images, seed)
    assert bits.shape == images.shape
    assert bits.dtype == np.float32
    assert set(np.unique(bits)) <= {0.0, 1.0}
    assert not bits[images == 0].any()
    assert bits[images == 255].all()
    assert bits.tobytes() == binarize(images.copy(), seed).tobytes()


def test_binarize_draws_each_grey_value_with_its_probability() -> None:
    draws = 20_000
    greys = np.arange(256, dtype=np.uint8)
    share = binarize(np.tile(greys, (draws, 1)), seed=3).mean(axis=0, dtype=np.float64)
    wanted = greys / 255
    # Six standard errors: one false alarm in two million runs, and the seed is fixed.
    assert (np.abs(share - wanted) <= 6 * np.sqrt(wanted * (1 - wanted) / draws)).all()


def test_binarize_differs_by_seed_and_from_pixel_to_pixel(mnist: Dataset) -> None:
    images = mnist.test.images[:100]
    assert (binarize(images, 0) != binarize(images, 1)).any()
    half = np.full((1000, 64), 128, np.uint8)
    one, other = binarize(half, 0), binarize(half, 1)
    assert abs((one != other).mean() - 0.5) < 0.02
    assert abs((one[:, 1:] != one[:, :-1]).mean() - 0.5) < 0.02
    assert len(np.unique(one, axis=0)) == 1000
