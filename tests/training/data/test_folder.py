"""A folder of pictures as a data set: walking, splitting, skipping and refusing files."""

import dataclasses
import errno
import hashlib
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from training.data import decoding, pictures
from training.data import folder as folder_module
from training.data import splits as splits_module
from training.data.datasets import Dataset, Split, load_dataset
from training.data.download import data_dir
from training.data.rows import Rows
from training.data.spec import DataSpec
from training.data.splits import split_by_hash, split_key
from training.errors import ConfigError, DataError, DataMissing


def picture(seed: int, *shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, shape or (8, 8, 3), dtype=np.uint8)


def write(path: Path, array: NDArray[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def write_many(folder: Path, count: int = 100, *shape: int) -> dict[str, NDArray[np.uint8]]:
    """Writes different pictures; returns their pixels by name."""
    arrays = {f"{seed:04}.png": picture(seed, *shape) for seed in range(count)}
    for name, array in arrays.items():
        write(folder / name, array)
    return arrays


def load(folder: Path, **options: Any) -> Dataset:
    return load_dataset(DataSpec.parse(f"folder:{folder}", **options))


def forget_decoded() -> None:
    shutil.rmtree(data_dir() / "decoded")


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def splits(dataset: Dataset) -> dict[str, Split]:
    return {name: getattr(dataset, name) for name in ("train", "validation", "test")}


def members(dataset: Dataset) -> dict[str, set[bytes]]:
    """The images of each split, as bytes."""
    return {
        name: {image.tobytes() for image in split.images} for name, split in splits(dataset).items()
    }


def chw(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(array.transpose(2, 0, 1)) if array.ndim == 3 else array[None]


def test_rgb_pictures_in_subfolders_have_their_classes(tmp_path: Path) -> None:
    colours = {"dogs": 0, "cats": 1, "bears": 2}
    for name, channel in colours.items():
        for seed in range(60):
            array = picture(seed, 32, 32, 3) // 4
            array[..., channel] |= 192
            suffix = ("png", "bmp", "ppm", "webp")[seed % 4]
            path = tmp_path / name / ("deeper" if seed % 2 else "") / f"{seed}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            options = {"lossless": True} if suffix == "webp" else {}
            Image.fromarray(array).save(path, **options)
    dataset = load(tmp_path)
    assert dataset.name == f"folder:{tmp_path}"
    assert dataset.image_shape == (3, 32, 32)
    assert dataset.class_names == ("bears", "cats", "dogs")
    assert sum(len(split.images) for split in splits(dataset).values()) == 180
    for split in splits(dataset).values():
        assert split.images.dtype == np.uint8
        assert split.labels.dtype == np.int64
        for image, label in zip(split.images, split.labels, strict=True):
            assert image[colours[dataset.class_names[label]]].min() >= 192


def test_pictures_without_subfolders_have_no_labels(tmp_path: Path) -> None:
    arrays = write_many(tmp_path, 100, 9, 7)
    dataset = load(tmp_path)
    assert dataset.image_shape == (1, 9, 7)
    assert dataset.class_names == ()
    for split in splits(dataset).values():
        assert split.labels.shape == (len(split.images),)
        assert not split.labels.any()
    assert set().union(*members(dataset).values()) == {
        chw(array).tobytes() for array in arrays.values()
    }


def test_each_split_is_sorted_by_path(tmp_path: Path) -> None:
    arrays = write_many(tmp_path)
    for split in splits(load(tmp_path)).values():
        names = sorted(arrays)
        found = [chw(arrays[name]).tobytes() for name in names]
        order = [found.index(image.tobytes()) for image in split.images]
        assert order == sorted(order)


def test_pictures_outside_the_subfolders_are_refused(tmp_path: Path) -> None:
    write_many(tmp_path / "cats", 30)
    write(tmp_path / "cover.png", picture(0))
    with pytest.raises(DataError, match="1 images are outside its subfolders and 30 in them"):
        load(tmp_path)


def test_one_coloured_picture_makes_all_of_them_rgb(tmp_path: Path) -> None:
    arrays = write_many(tmp_path, 60, 8, 8)
    assert load(tmp_path).image_shape == (1, 8, 8)
    arrays["0007.png"] = picture(7)
    write(tmp_path / "0007.png", arrays["0007.png"])
    dataset = load(tmp_path)
    assert dataset.image_shape == (3, 8, 8)
    assert set().union(*members(dataset).values()) == {
        np.broadcast_to(chw(array), (3, 8, 8)).tobytes() for array in arrays.values()
    }
    assert load(tmp_path, channels=1).image_shape == (1, 8, 8)


def test_pictures_of_different_sizes_are_refused_without_an_image_size(tmp_path: Path) -> None:
    write_many(tmp_path, 60)
    write(tmp_path / "0030.png", picture(0, 10, 12, 3))
    with pytest.raises(
        ConfigError, match=r"0000\.png has 8x8 pixels, 0030\.png has 12x10.*--image-size"
    ):
        load(tmp_path)
    assert load(tmp_path, image_size=6).image_shape == (3, 6, 6)


def test_hidden_files_and_files_of_other_types_are_ignored(tmp_path: Path) -> None:
    write_many(tmp_path / "a", 60)
    before = load(tmp_path)
    (tmp_path / "Thumbs.db").write_bytes(b"x")
    (tmp_path / "a" / "notes.txt").write_text("x")
    (tmp_path / "a" / "labels.json").write_text("{}")
    write(tmp_path / ".cache" / "x.png", picture(1000))
    (tmp_path / "a" / "._0001.png").write_bytes(b"of a Mac")
    (tmp_path / "empty").mkdir()
    after = load(tmp_path, bad_files="refuse")
    assert (after.sha256, after.class_names) == (before.sha256, ("a",))
    assert after.skipped == ()


def test_pictures_are_recognised_by_content_and_suffixes_in_any_case(tmp_path: Path) -> None:
    arrays = write_many(tmp_path, 60)
    (tmp_path / "0000.png").rename(tmp_path / "0000.JPG")
    images = set().union(*members(load(tmp_path)).values())
    assert chw(arrays["0000.png"]).tobytes() in images
    assert len(images) == 60


def spoil(folder: Path) -> dict[str, str]:
    """Damages files of a folder; returns the expected reason for each, in order."""
    truncate(folder / "0003.png")
    (folder / "0005.png").write_bytes(b"")
    (folder / "0006.png").unlink()
    (folder / "0006.png").symlink_to("nowhere")
    (folder / "0008.jpg").write_text("<html>not found</html>")
    return {
        "0003.png": "image file is truncated",
        "0005.png": "damaged or not a picture",
        "0006.png": "No such file or directory",
        "0008.jpg": "damaged or not a picture",
    }


def test_bad_files_are_refused_with_their_number_and_the_first(tmp_path: Path) -> None:
    write_many(tmp_path, 60)
    spoil(tmp_path)
    with pytest.raises(DataError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}: 4 of 61 images cannot be used, the first: 0003.png: ")
    assert "truncated" in message
    assert message.endswith("--bad-files skip")


def test_skipped_bad_files_are_named(tmp_path: Path) -> None:
    arrays = write_many(tmp_path, 60)
    wrong = spoil(tmp_path)
    lines: list[str] = []
    dataset = load_dataset(DataSpec(f"folder:{tmp_path}", bad_files="skip"), report=lines.append)
    assert dataset.skipped == tuple(wrong)
    assert lines[0] == f"reading 60 images from {tmp_path}"
    for line, (name, reason) in zip(lines[1:], wrong.items(), strict=True):
        assert line.startswith(f"skipped {name}: ")
        assert reason in line
    assert set().union(*members(dataset).values()) == {
        chw(array).tobytes() for name, array in arrays.items() if name not in wrong
    }


def test_only_the_first_ten_skipped_files_are_named(tmp_path: Path) -> None:
    write_many(tmp_path, 120)
    for seed in range(13):
        truncate(tmp_path / f"{seed:04}.png")
    lines: list[str] = []
    dataset = load_dataset(DataSpec(f"folder:{tmp_path}", bad_files="skip"), report=lines.append)
    names = [f"{seed:04}.png" for seed in range(13)]
    assert dataset.skipped == tuple(names)
    assert [line.split()[1].rstrip(":") for line in lines[1:-1]] == names[:10]
    assert lines[-1] == "skipped 3 more"
    lines.clear()
    again = load_dataset(DataSpec(f"folder:{tmp_path}", bad_files="skip"), report=lines.append)
    assert again.skipped == dataset.skipped
    assert lines[1] == "without 13 that could not be used, the first: 0000.png"


def test_a_bad_file_affects_neither_size_nor_channels(tmp_path: Path) -> None:
    write_many(tmp_path, 60, 8, 8)
    truncate(write(tmp_path / "0000.png", picture(0, 20, 20, 3)))
    assert load(tmp_path, bad_files="skip").image_shape == (1, 8, 8)


def test_a_decompression_bomb_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    write_many(tmp_path, 60)
    write(tmp_path / "bomb.png", np.zeros((11, 11), np.uint8))
    with pytest.raises(DataError, match=r"1 of 61 images.*bomb\.png: .*121 pixels"):
        load(tmp_path, image_size=8)
    assert load(tmp_path, image_size=8, bad_files="skip").skipped == ("bomb.png",)


def test_a_subfolder_that_cannot_be_read_is_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_many(tmp_path / "a", 60)
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refusing(path: Path) -> Any:  # the tests may run as root, which may read everything
        if getattr(path, "name", "") == "locked":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(DataError, match=r"1 of 61 images .*locked/: Permission denied"):
        load(tmp_path)
    assert load(tmp_path, bad_files="skip").skipped == ("locked/",)
    with pytest.raises(DataError, match="locked: Permission denied"):
        load(tmp_path / "locked", bad_files="skip")


def test_a_missing_folder_is_missing_data_and_named(tmp_path: Path) -> None:
    with pytest.raises(DataMissing, match=f"{tmp_path}/nothing: there is no such folder"):
        load(tmp_path / "nothing")


def test_a_file_as_folder_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.png", picture(0))
    with pytest.raises(DataError, match=r"a\.png: Not a directory") as caught:
        load(path)
    assert not isinstance(caught.value, DataMissing)


def test_a_folder_without_pictures_is_refused_with_what_is_wanted_and_found(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no images, wanted files named \.bmp, .*\.webp$"):
        load(tmp_path)
    for name in ("a.tif", "b.tif", "README"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"there are 2 \.tif, 1 without a suffix$"):
        load(tmp_path)


def test_too_few_pictures_are_refused(tmp_path: Path) -> None:
    write_many(tmp_path, 19)
    with pytest.raises(DataError, match="19 usable images, wanted 20 or more"):
        load(tmp_path)
    for seed in range(19):
        truncate(tmp_path / f"{seed:04}.png")
    with pytest.raises(DataError, match="0 usable images"):
        load(tmp_path, bad_files="skip")


def test_a_split_that_would_be_empty_gets_one_picture(tmp_path: Path) -> None:
    names = [f"{seed:04}.png" for seed in range(400)]
    train, validation, test = split_by_hash(names)
    for kind, chosen in {"train": train, "all but test": [*train, *validation]}.items():
        folder = tmp_path / kind
        for index in chosen[:60]:
            write(folder / names[index], picture(int(index)))
        sizes = [len(split.images) for split in splits(load(folder)).values()]
        assert min(sizes) >= 1
        assert sum(sizes) == 60
    assert len(test)


def test_every_class_is_trained_on(tmp_path: Path) -> None:
    names = [f"{label}/{label}.png" for label in range(20)]
    for seed in range(30):
        write(tmp_path / "many" / f"{seed}.png", picture(seed))
    for label, name in enumerate(names):
        write(tmp_path / name, picture(100 + label))
    assert len(np.unique(split_by_hash(names)[0])) < 20  # some would be held out
    dataset = load(tmp_path)
    assert set(dataset.train.labels.tolist()) == set(range(21))
    assert min(len(split.images) for split in splits(dataset).values()) >= 1


def test_a_folder_of_the_same_picture_many_times_is_a_data_set(tmp_path: Path) -> None:
    for seed in range(40):
        write(tmp_path / f"{seed}.png", np.full((9, 12, 3), 77, np.uint8))
    dataset = load(tmp_path)
    assert dataset.image_shape == (3, 9, 12)
    assert all((split.images == 77).all() for split in splits(dataset).values())


def test_scans_in_black_and_white_are_grey(tmp_path: Path) -> None:
    for seed in range(40):
        scan = Image.fromarray((picture(seed, 128, 128) > 127).astype(np.uint8) * 255).convert("1")
        (tmp_path / "a").mkdir(exist_ok=True)
        scan.save(tmp_path / "a" / f"{seed}.png")
    dataset = load(tmp_path)
    assert dataset.image_shape == (1, 128, 128)
    assert set(np.unique(dataset.train.images)) == {0, 255}


def test_images_of_any_height_and_width_are_cropped_or_padded(tmp_path: Path) -> None:
    for seed in range(30):
        write(tmp_path / f"{seed}.png", picture(seed, 20 + seed, 20, 3))
    assert load(tmp_path, image_size=(40, 72)).image_shape == (3, 40, 72)
    padded = load(tmp_path, image_size=(40, 72), fit="pad", background="#010203")
    corners = {tuple(image[:, 0, 0]) for image in padded.train.images}
    assert corners == {(1, 2, 3)}


def test_more_pictures_than_memory_are_read_from_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_many(tmp_path, 60)
    inside = load(tmp_path)
    monkeypatch.setattr(decoding, "IN_MEMORY", 60 * 3 * 8 * 8 - 1)
    outside = load(tmp_path)
    for name, split in splits(outside).items():
        assert isinstance(split.images, Rows)
        assert np.array_equal(split.images[:], getattr(inside, name).images)


def test_symbolic_links_are_followed_but_not_in_cycles(tmp_path: Path) -> None:
    write_many(tmp_path / "data" / "a", 60)
    write_many(tmp_path / "elsewhere", 30)
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "back").symlink_to(tmp_path / "data")
    (tmp_path / "elsewhere" / "self").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "a" / "9999.png").symlink_to(write(tmp_path / "one.png", picture(9999)))
    dataset = load(tmp_path / "data")
    assert dataset.class_names == ("a", "b")
    assert sum(len(split.images) for split in splits(dataset).values()) == 91
    assert chw(picture(9999)).tobytes() in set().union(*members(dataset).values())


def test_the_data_set_does_not_depend_on_the_order_of_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        write_many(tmp_path / name, 60)
    truncate(tmp_path / "b" / "0000.png")
    truncate(tmp_path / "a" / "0001.png")
    before = load(tmp_path, bad_files="skip")
    assert before.skipped == ("a/0001.png", "b/0000.png")
    shuffle = random.Random(0)
    scandir = os.scandir

    class Shuffled:
        def __init__(self, path: Path):
            with scandir(path) as entries:
                self.entries = list(entries)
            shuffle.shuffle(self.entries)

        def __enter__(self) -> list[os.DirEntry[str]]:
            return self.entries

        def __exit__(self, *_error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Shuffled)
    assert_same(load(tmp_path, bad_files="skip"), before)


def assert_same(one: Dataset, other: Dataset) -> None:
    for name, split in splits(one).items():
        assert split.images.tobytes() == getattr(other, name).images.tobytes()
        assert split.labels.tolist() == getattr(other, name).labels.tolist()
    empty = Split(np.empty((0, 1, 1, 1), np.uint8), np.empty(0, np.int64))
    bare = [
        dataclasses.replace(dataset, train=empty, validation=empty, test=empty)
        for dataset in (one, other)
    ]
    assert bare[0] == bare[1]


def test_the_data_set_does_not_depend_on_the_number_of_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_many(tmp_path, 200)
    monkeypatch.setattr(pictures, "usable_cpus", lambda: 1)
    one = load(tmp_path)
    monkeypatch.setattr(pictures, "usable_cpus", lambda: 16)
    monkeypatch.setattr(pictures, "_TASK_PICTURES", 7)
    forget_decoded()
    assert_same(load(tmp_path), one)


def test_digest_is_over_paths_and_contents_of_the_used_files(tmp_path: Path) -> None:
    write_many(tmp_path / "photos", 60)
    photos = tmp_path / "photos"

    def digest() -> dict[str, str]:
        return load(photos, bad_files="skip").sha256

    first = digest()
    lines = b"".join(
        path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"\n"
        for path in sorted(photos.iterdir())
    )
    assert first == {"photos": hashlib.sha256(lines).hexdigest()}
    truncate(write(photos / "more.png", picture(0)))
    (photos / "notes.txt").write_text("x")
    assert digest() == first
    (photos / "0000.png").rename(photos / "0000a.png")
    renamed = digest()
    assert renamed != first
    (photos / "0000a.png").rename(photos / "0000.png")
    assert digest() == first
    # A byte after the end of the picture changes the digest and not the pixels.
    raw = (photos / "0000.png").read_bytes()
    (photos / "0000.png").write_bytes(raw + b"\0")
    assert digest() != first
    (photos / "0000.png").write_bytes(raw)
    (tmp_path / "photos").rename(tmp_path / "moved")
    assert load(tmp_path / "moved", bad_files="skip").sha256 == {"moved": first["photos"]}


def test_an_added_picture_changes_the_split_of_no_other(tmp_path: Path) -> None:
    write_many(tmp_path, 150)
    before = members(load(tmp_path))
    for seed in range(1000, 1040):
        write(tmp_path / f"{seed - 950:04}-more.png", picture(seed))
    after = members(load(tmp_path))
    for name, images in before.items():
        assert images <= after[name]
    assert sum(map(len, after.values())) == 190


PATHS = st.lists(
    st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), min_size=1),
    min_size=3,
    unique=True,
)


@given(PATHS, PATHS)
def test_splits_are_complete_disjoint_and_stable(first: list[str], more: list[str]) -> None:
    more = [path for path in more if path not in first]
    before = split_by_hash(first)
    assert sorted(index for split in before for index in split) == list(range(len(first)))
    assert all(map(len, before[1:]))
    mixed = sorted(first + more)
    after = split_by_hash(mixed)
    moved = 0
    for one, other in zip(before, after, strict=True):
        stays = {mixed[index] for index in other if mixed[index] in set(first)}
        moved += len({first[index] for index in one} - stays)
        assert other.tolist() == sorted(other)
    # The one picture of a split that would be empty can be moved by one that belongs there.
    assert moved <= sum(len(split) == 1 for split in before[1:])


@pytest.mark.parametrize(
    ("path", "key"),
    [
        ("cats/tom.png", "cats/tom.png"),
        ("cats/tom@2x.png", "cats/tom.png"),
        ("cats/tom@1.5x.png", "cats/tom.png"),
        ("tom@me@home.jpg", "tom@me.jpg"),
        ("cats/@home.png", "cats/@home.png"),
        ("cats@home/tom.png", "cats@home/tom.png"),
    ],
)
def test_the_split_is_chosen_by_the_path_without_its_variant(path: str, key: str) -> None:
    assert split_key(path) == key


def test_pictures_of_one_thing_share_a_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(splits_module, "MAX_VALIDATION", 100)
    things = [f"cats/{index}" for index in range(2000)]
    paths = [f"{thing}{variant}.png" for thing in things for variant in ("", "@left", "@right")]
    splits = split_by_hash(paths)
    for split in splits:
        assert {index - index % 3 + each for index in split for each in range(3)} == set(split)
    assert 95 < len(splits[1]) <= 100
    assert len(splits[2]) > 400


def test_variants_are_a_part_of_the_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_many(tmp_path, 100)
    plain = load(tmp_path).sha256
    with monkeypatch.context() as context:
        context.setattr(folder_module, "split_key", lambda path: path)
        forget_decoded()
        assert load(tmp_path).sha256 == plain
        (tmp_path / "0000.png").rename(tmp_path / "0000@2x.png")
        whole = load(tmp_path).sha256
    forget_decoded()
    assert load(tmp_path).sha256 != whole


def test_splits_have_about_their_shares_of_the_pictures() -> None:
    train, validation, test = split_by_hash([f"cats/{index}.jpg" for index in range(20_000)])
    # Five standard errors of a tenth.
    assert abs(len(test) - 2000) < 212
    assert abs(len(validation) - 2000) < 212
    assert len(train) == 20_000 - len(validation) - len(test)


def test_the_validation_split_is_limited_and_the_test_split_never_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paths = [f"{index}.png" for index in range(3000)]
    free = split_by_hash(paths)
    monkeypatch.setattr(splits_module, "MAX_VALIDATION", 100)
    train, validation, test = split_by_hash(paths)
    assert np.array_equal(test, free[2])
    assert len(validation) == 100
    assert set(validation) < set(free[1])
    assert sorted([*train, *validation]) == sorted([*free[0], *free[1]])
    classes = [f"{name}/{path}" for name in ("cats", "dogs") for path in paths[:1500]]
    cats = sum(classes[index].startswith("cats") for index in split_by_hash(classes)[1])
    assert 25 < cats < 75
    # A picture added to the validation split moves at most one other.
    longer = split_by_hash([*paths, "3000.png", "3001.png"])
    assert np.array_equal(longer[2][: len(test)], test)
    assert len(set(validation) - set(longer[1])) <= 2


def test_sixteen_bit_palette_and_transparent_pictures_mix_in_a_folder(tmp_path: Path) -> None:
    write_many(tmp_path, 60, 8, 8)
    write(tmp_path / "deep.png", np.full((8, 8), 25_700, np.uint16))
    index = Image.fromarray(np.ones((8, 8), np.uint8)).convert("P")
    index.putpalette([0, 0, 0, 101, 101, 101])
    index.save(tmp_path / "palette.gif")
    Image.new("LA", (8, 8), (0, 0)).save(tmp_path / "clear.png")
    dataset = load(tmp_path)
    assert dataset.image_shape == (1, 8, 8)
    flat = {
        int(image[0, 0, 0])
        for split in splits(dataset).values()
        for image in split.images
        if (image == image[0, 0, 0]).all()
    }
    assert flat == {100, 101, 255}


def test_a_class_name_that_is_not_utf_8_is_refused(tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    write_many(folder, 60)
    with pytest.raises(DataError, match=r"the class 'caf\\udce9', wanted a name in UTF-8"):
        load(tmp_path)


def test_files_that_are_no_pictures_are_named(tmp_path: Path) -> None:
    write_many(tmp_path, 60)
    for name in ("a.heic", "b.heic", "c.tif", "d.jfif", ".hidden"):
        (tmp_path / name).write_bytes(b"")
    lines: list[str] = []
    load_dataset(DataSpec(f"folder:{tmp_path}"), report=lines.append)
    assert lines == ["ignored 2 .heic, 1 .jfif, 1 .tif", f"reading 60 images from {tmp_path}"]
