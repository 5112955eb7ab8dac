"""Rows of a memory map, samples of them, and the images that models are measured on."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from common.pixels import to_unit
from training.data.rows import Rows, chunk_rows, interleave_classes, sample_rows
from training.data.targets import Targets, binarize


def pixels(rows: int, *shape: int) -> NDArray[np.uint8]:
    shape = (rows, *(shape or (3, 4, 5)))
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@given(st.lists(st.integers(0, 19), max_size=30), st.slices(30))
def test_rows_index_like_the_array_that_they_choose(chosen: list[int], part: slice) -> None:
    images = pixels(20)
    order = np.array(chosen, np.int64)
    rows, array = Rows(images, order), images[order]
    assert (len(rows), rows.shape, rows.dtype, rows.nbytes) == (
        len(array), array.shape, array.dtype, array.nbytes,
    )  # fmt: skip
    assert np.array_equal(rows[part], array[part])
    places = np.arange(len(order))[::2]
    assert np.array_equal(rows[places], array[places])
    assert [image.tobytes() for image in rows] == [image.tobytes() for image in array]
    if chosen:
        assert np.array_equal(rows[-1], array[-1])


def test_rows_of_channels_last_are_read_contiguously(tmp_path: Path) -> None:
    images = pixels(6, 4, 5, 3)
    images.tofile(tmp_path / "images")
    mapped = np.memmap(tmp_path / "images", np.uint8, "r", shape=images.shape)
    got = Rows(mapped.transpose(0, 3, 1, 2), np.array([4, 2]))[:]
    assert np.array_equal(got, images[[4, 2]].transpose(0, 3, 1, 2))
    assert got.flags.c_contiguous
    assert got.flags.writeable


def test_rows_cannot_be_copied_whole_by_mistake() -> None:
    rows = Rows(pixels(4), np.arange(4))
    for copy in (np.array, np.asarray, np.ascontiguousarray):
        with pytest.raises(TypeError, match="read them in chunks"):
            copy(rows)


@given(st.integers(0, 3000), st.integers(1, 1000), st.integers(0, 3))
def test_a_sample_of_rows_is_ascending_and_seeded(count: int, most: int, seed: int) -> None:
    rows = sample_rows(count, most, seed)
    assert len(rows) == min(count, most)
    assert (np.diff(rows) > 0).all()
    assert not len(rows) or 0 <= rows[0] <= rows[-1] < count
    assert np.array_equal(rows, sample_rows(count, most, seed))
    if count > most + 10 > 15:
        assert not np.array_equal(rows, sample_rows(count, most, seed + 1))


@given(st.integers(0, 40), st.integers(1, 7), st.slices(40), st.integers(0, 2**64))
def test_targets_are_the_bits_of_the_whole_split(
    count: int, side: int, part: slice, seed: int
) -> None:
    images = pixels(count, 1, side, 3)
    bits = binarize(images, seed)
    targets = Targets(images, seed)
    assert (len(targets), targets.shape) == (count, images.shape)
    assert np.array_equal(targets[part], bits[part])
    assert targets[part].dtype == np.float32
    places = np.arange(count)[::3]
    assert np.array_equal(targets[places], bits[places])
    assert np.array_equal(Targets(images, None)[part], to_unit(images[part]))


@given(st.lists(st.integers(0, 4), max_size=40), st.integers(1, 50))
def test_classes_are_interleaved(labels: list[int], count: int) -> None:
    chosen = [int(index) for index in interleave_classes(np.array(labels, np.int64), count)]
    assert len(set(chosen)) == len(chosen) == min(count, len(labels))
    picked = Counter(labels[index] for index in chosen)
    for label, members in Counter(labels).items():
        # As many as of any other class, up to one, unless there are no more.
        assert picked[label] >= min(members, max(picked.values()) - 1)
    classes = len(set(labels))
    if min(Counter(labels).values(), default=0) * classes >= count >= classes:
        rounds = [labels[index] for index in chosen]
        assert rounds == [sorted(set(labels))[place % classes] for place in range(count)]


@pytest.mark.parametrize(
    ("labels", "count", "wanted"),
    [
        ([0] * 10, 5, [0, 2, 4, 6, 8]),
        ([0, 1] * 6, 4, [0, 1, 6, 7]),
        ([0] * 9 + [1], 4, [0, 9, 4, 1]),
        (list(range(100)), 4, [0, 25, 50, 75]),
        ([3, 1, 2, 0], 2, [3, 2]),
    ],
)
def test_images_and_classes_are_spaced_evenly(
    labels: list[int], count: int, wanted: list[int]
) -> None:
    assert interleave_classes(np.array(labels, np.int64), count).tolist() == wanted


def test_chunks_of_images_have_bounded_values() -> None:
    assert chunk_rows((1, 28, 28)) == chunk_rows((1, 8, 8)) == 1000
    assert chunk_rows((3, 64, 64)) == 170
    assert chunk_rows((3, 4096, 4096)) == 1
