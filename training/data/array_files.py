"""Data sets whose images are arrays in files: public ones, IDX and npy files.

The splits are fixed. MNIST and Fashion-MNIST: the last `MAX_VALIDATION` images of the
official training file are the validation split and the rest is the training split; the
official test file is the test split, which no choice in training depends on. Other IDX
files: without test files, every tenth image goes to the test split. Of the remaining images,
the last tenth (at most `MAX_VALIDATION`) is the validation split, the rest the training split.
npy files: see `training.data.splits.split_evenly`, or with groups `split_groups`.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._files import reason
from training.data.arrays import ArraySource
from training.data.checks import Progress, file_sha256
from training.data.classes import class_indices
from training.data.download import Report, read_files
from training.data.idx import open_idx, parse_idx
from training.data.npy import groups_of, images_of, labels_of, open_npy
from training.data.sources import SOURCES
from training.data.spec import DataSpec
from training.data.splits import (
    MAX_VALIDATION,
    MIN_IMAGES,
    Splits,
    family_of,
    split_evenly,
    split_groups,
)
from training.errors import DataError

_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip


def public_source(spec: DataSpec, root: Path, report: Report, *, fetch: bool) -> ArraySource:
    """A public data set, from the cache folder or downloaded.

    Raises:
        DataMissing: It is not on disk and cannot be downloaded.
        DataError: It is damaged.
    """
    source = SOURCES[spec.source]
    contents = [content for _, content in read_files(source, root, report, fetch=fetch)]
    train, labels, test, test_labels = (
        parse_idx(content.raw, file.name)
        for file, content in zip(source.files, contents, strict=True)
    )
    if len(train) <= MAX_VALIDATION:
        raise DataError(
            f"{source.name}: {len(train)} training images, wanted over {MAX_VALIDATION}"
        )
    return _cut(
        spec,
        (train, labels, np.arange(len(train))),
        (test, test_labels, np.arange(len(test))),
        MAX_VALIDATION,
        _CLASS_NAMES[spec.source],
        {file.name: content.sha256 for file, content in zip(source.files, contents, strict=True)},
    )


def idx_source(spec: DataSpec, progress: Progress) -> ArraySource:
    """The images and labels of IDX files.

    Raises:
        DataMissing: A file does not exist.
        DataError: A file is damaged, or they do not belong together.
    """
    files = [file for file in spec.files if file is not None]
    found = {file: open_idx(file, progress) for file in files}
    arrays = [None if file is None else found[file][0] for file in spec.files]
    images, labels, test_images, test_labels = (*arrays, None, None, None)[:4]
    assert images is not None
    if len(images) < MIN_IMAGES:
        raise DataError(f"{files[0]}: {len(images)} images, wanted {MIN_IMAGES} or more")
    rows = np.arange(len(images))
    if test_images is None:
        # Every tenth image rather than the last tenth, since files are often sorted by class.
        chosen = rows % 10 == 9
        train, test = (images, labels, rows[~chosen]), (images, labels, rows[chosen])
    else:
        train = images, labels, rows
        test = test_images, test_labels, np.arange(len(test_images))
    alike = spec.image_size is not None or test[0].shape[1:] == images.shape[1:]
    if not len(test[2]) or not alike:
        raise DataError(
            f"{spec.source}: test images {list(test[0].shape)}, wanted one or more like the "
            f"training images {list(images.shape)}"
        )
    validation = min(MAX_VALIDATION, len(train[2]) // 10)
    for pixels, numbers, _ in (train, test):
        if numbers is not None:
            _refuse_other_length(spec, pixels, numbers)
    classes = 0
    if labels is not None:
        classes = 1 + int(max(part[1].max() for part in (train, test) if part[1] is not None))
    sha256 = {key: found[file][1] for key, file in zip(_keys(files), files, strict=True)}
    names = tuple(str(index) for index in range(classes))
    return _cut(spec, train, test, validation, names, sha256)


def npy_source(spec: DataSpec, progress: Progress) -> ArraySource:
    """The images, labels and groups of npy files.

    Raises:
        DataMissing: A file does not exist.
        DataError: A file is damaged, or they do not belong together; or a split would be empty.
    """
    files = [file for file in spec.files if file is not None]
    images = images_of(open_npy(files[0]), str(files[0]))
    if len(images) < MIN_IMAGES:
        raise DataError(f"{files[0]}: {len(images)} images, wanted {MIN_IMAGES} or more")
    labels = np.zeros(len(images), np.int64)
    names: tuple[str, ...] = ()
    if len(files) > 1:
        found = labels_of(open_npy(files[1]), str(files[1]))
        _refuse_other_length(spec, images, found)
        labels, names = class_indices(found, str(files[1]))
    groups: NDArray[np.int64] | None = None
    rows = split_evenly(len(images))
    if len(files) > 2:
        groups, group_names = groups_of(open_npy(files[2]), len(images), str(files[2]))
        rows = _split_groups(group_names, groups, files[2])
    train, validation, test = (labels[part] for part in rows)
    try:
        sums = [file_sha256(file, len(images), progress) for file in files]
    except OSError as error:
        raise DataError(f"{spec.source}: {reason(error)}") from error
    return ArraySource(
        spec,
        (images, images, images),
        rows,
        (train, validation, test),
        names,
        dict(zip(_keys(files), sums, strict=True)),
        groups=None if groups is None else (groups[rows[0]], groups[rows[1]], groups[rows[2]]),
    )


def _split_groups(names: Sequence[str], groups: NDArray[np.int64], file: Path) -> Splits:
    """Divides the images of groups.

    Raises:
        DataError: There are too few families for three splits.
    """
    rows = split_groups(names, groups)
    for name, part in zip(("training", "validation", "test"), rows, strict=True):
        if not len(part):
            families = len({family_of(group) for group in names})
            raise DataError(
                f"{file}: none of its {families} families (names of groups without the last @ and "
                f"what follows) is in the {name} split, wanted at least one in each"
            )
    return rows


# Images [M, H, W], their labels [M] if there are any, and the rows that are used.
_Part = tuple[NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.int64]]


def _cut(
    spec: DataSpec,
    train: _Part,
    test: _Part,
    last: int,
    class_names: tuple[str, ...],
    sha256: dict[str, str],
) -> ArraySource:
    """Cuts the last `last` of the training images off, as the validation split.

    Raises:
        DataError: The shapes are wrong, or images and labels do not belong together.
    """
    parts = []
    for array, found, used in (train, test):
        if array.ndim != 3 or 0 in array.shape[1:]:
            raise DataError(
                f"{spec.source}: images {list(array.shape)}, wanted [N, H, W], none of them 0"
            )
        numbers = np.zeros(len(array), np.int64) if found is None else found.astype(np.int64)
        _refuse_other_length(spec, array, numbers)
        parts.append((array[:, None], numbers, used))
    (images, labels, rows), (test_images, test_labels, test_rows) = parts
    split = rows[:-last], rows[-last:], test_rows
    return ArraySource(
        spec,
        (images, images, test_images),
        split,
        (labels[split[0]], labels[split[1]], test_labels[test_rows]),
        class_names,
        sha256,
    )


def _refuse_other_length(spec: DataSpec, images: NDArray[Any], labels: NDArray[Any]) -> None:
    if labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{spec.source}: images {list(images.shape)} and labels {list(labels.shape)} do not "
            "belong together"
        )


def _keys(files: Sequence[Path]) -> list[str]:
    """Names files by the shortest endings of their paths that tell them apart, without `.gz`."""
    plain = [file.with_suffix("") if file.suffix == ".gz" else file for file in files]
    for length in range(1, max(len(path.parts) for path in plain)):
        keys = ["/".join(path.parts[-length:]) for path in plain]
        if len(set(keys)) == len(keys):
            return keys
    return [str(file) for file in files]
