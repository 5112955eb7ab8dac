"""The division of a source's images into training, validation and test split.

By a hash of the path, for pictures with names: a tenth goes to the test split, another tenth to
the validation split. Other pictures therefore stay in their splits when one is added, with three
exceptions. The validation split holds at most `MAX_VALIDATION` pictures, those with the smallest
hashes; the rest of its tenth goes to the training split, so an added picture can move another one
there. A test or validation split that would be empty gets the picture with the smallest hash. And
a class that would have no training picture has all its pictures there.

Pictures of one thing must share a split, or the test split would hold near copies of what is
trained on. Those whose paths differ only between an `@` in the name and the suffix do: `icon.png`,
`icon@2x.png` and `icon@dark.png` have the same hash.

By a hash of the group, for images that are of things: see `split_groups`.

By position, for the rows of files: see `split_evenly`.
"""

import hashlib
import os
import re
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError

#: Fewest images of a data set.
MIN_IMAGES = 20
MAX_VALIDATION = 5_000
#: Most test images that are chosen by position.
MAX_TEST = 10_000

_VARIANT = re.compile(r"(?<=[^/])@[^/@]*(?=\.[^./@]*\Z)")

Indices = NDArray[np.int64]
#: Indices of the training, the validation and the test images, ascending.
Splits = tuple[Indices, Indices, Indices]


def split_by_hash(paths: Sequence[str], labels: Indices | None = None) -> Splits:
    """Divides pictures by a hash of their paths.

    Args:
        paths: Path of each picture within its folder, at least three.
        labels: Class of each picture; None without classes.

    Returns:
        The indices of the pictures of each split, ascending.
    """
    parts = _parts_by_hash(_hashes(os.fsencode(split_key(path)) for path in paths))
    if labels is not None:
        _train_every_class(parts, labels)
    return _rows_of(parts)


def split_groups(names: Sequence[str], groups: Indices) -> Splits:
    """Divides images by a hash of the family that their group belongs to.

    Groups are of one family if their names are alike but for what follows the last `@`, such as
    `Roman@Bold` and `Roman@Italic`. All images of a family share a split, so none is moved for the
    sake of its class.

    Args:
        names: Name of each group.
        groups: Group of each image, an index into `names`.

    Returns:
        The indices of the images of each split, ascending; one is empty if there are too few
        families.
    """
    return _rows_of(_parts_by_hash(_hashes(family_of(name).encode() for name in names)[groups]))


def family_of(group: str) -> str:
    """The part of a group's name that its family shares: all before the last `@`, if any."""
    return group.rpartition("@")[0] or group


def split_key(path: str) -> str:
    """What is hashed of a picture's path: all but what is between an `@` and the suffix."""
    return _VARIANT.sub("", path)


def split_evenly(count: int, *, validation: bool = True, test: bool = True) -> Splits:
    """Divides rows by their position, since files are often sorted by class.

    Of every ten rows, the fifth goes to the validation split and the tenth to the test split.
    Where these would be more than `MAX_VALIDATION` and `MAX_TEST`, as many of them are
    chosen, evenly spaced, and the others go to the training split.

    Args:
        count: Number of rows, at least `MIN_IMAGES`.
        validation: Whether to choose validation rows.
        test: Whether to choose test rows.
    """
    rows = np.arange(count, dtype=np.int64)
    chosen = [
        thinned(rows[rows % 10 == place], most if wanted else 0)
        for wanted, place, most in ((validation, 4, MAX_VALIDATION), (test, 9, MAX_TEST))
    ]
    return np.setdiff1d(rows, np.concatenate(chosen)), chosen[0], chosen[1]


def refuse_too_few(origin: str, count: int) -> None:
    """Refuses a source with fewer than `MIN_IMAGES` usable images.

    Raises:
        DataError: There are too few.
    """
    if count < MIN_IMAGES:
        raise DataError(f"{origin}: {count} usable images, wanted {MIN_IMAGES} or more")


def thinned(rows: Indices, most: int) -> Indices:
    """At most `most` of the rows, evenly spaced."""
    return rows if len(rows) <= most else rows[np.arange(most) * len(rows) // max(1, most)]


def _hashes(keys: Iterable[bytes]) -> NDArray[np.uint64]:
    digests = (hashlib.sha256(key).digest()[:8] for key in keys)
    return np.array([int.from_bytes(digest, "big") for digest in digests], np.uint64)


def _parts_by_hash(values: NDArray[np.uint64]) -> NDArray[np.int8]:
    """Splits by the hashes of images, equal ones together: 0 train, 1 validation, 2 test; [N]."""
    tenth = 2**64 // 10
    test = values < tenth
    if not test.any():
        test = values == values.min()
    validation = ~test & (values < 2 * tenth)
    if not validation.any() and not test.all():
        validation = values == values[~test].min()
    found = np.sort(values[validation])
    if len(found) > MAX_VALIDATION:
        # Images of one hash stay together, and the first of them even if they are more.
        validation &= (values < found[MAX_VALIDATION]) | (values == found[0])
    parts = np.zeros(len(values), np.int8)
    parts[validation], parts[test] = 1, 2
    return parts


def _rows_of(parts: NDArray[np.int8]) -> Splits:
    train, validation, test = (np.flatnonzero(parts == part).astype(np.int64) for part in range(3))
    return train, validation, test


def _train_every_class(parts: NDArray[np.int8], labels: Indices) -> None:
    """Moves the pictures of classes that have none in the training split there.

    A split that would be empty then keeps them.
    """
    for label in np.setdiff1d(labels, labels[parts == 0]):
        for part in (1, 2):
            members = (labels == label) & (parts == part)
            if (parts == part).sum() > members.sum():
                parts[members] = 0
