"""A folder of pictures as a data set.

Its subfolders are the classes; without any there are no labels. Looked through to
any depth, links followed; a link back into a folder that holds it is not. Hidden
files and files of other kinds (`Thumbs.db`, `notes.txt`) are passed over.

Which split a picture is in, a hash of its path within the folder decides, so that
pictures that are added move no other: a tenth is tested on, a tenth validated on.
Past `MOST_VALIDATION` the ones of the largest hashes are trained on instead; there,
one that is added can move one other into the training set. None ever leaves or
enters the test set.
"""

import functools
import hashlib
import os
import stat
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from common.pictures import SUFFIXES, PictureError, decode
from training.data.download import Report
from training.data.memory import refuse_too_many
from training.data.spec import DataSpec
from training.errors import ConfigError, DataError, DataMissing

FEWEST_IMAGES = 20
MOST_VALIDATION = 5_000

_BLOCK = 1024
_NAMED = 10


@dataclass(frozen=True)
class FolderImages:
    """What a folder holds.

    Attributes:
        splits: For `train`, `validation` and `test`, in this order: uint8
            [N, C, H, W] images and int64 [N] labels, in the order of their paths.
        class_names: Name of each class; empty without labels, which are then 0.
        sha256: Over the path and the content of every image that is used.
        skipped: Paths within the folder of the files that could not be used.
    """

    splits: tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], ...]
    class_names: tuple[str, ...]
    sha256: str
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Picture:
    """A file that was read: its path within the folder, its SHA-256, its pixels."""

    path: str
    sha256: str
    pixels: NDArray[np.uint8]


@dataclass(frozen=True)
class _Problem:
    """What cannot be read, by its path within the folder, and why."""

    path: str
    reason: str


@dataclass
class _Listing:
    """What is in a folder.

    Attributes:
        paths: Of the pictures, within the folder.
        problems: Links with the name of a picture, and folders, that cannot be followed.
        others: How many files of each other kind there are, by suffix.
    """

    paths: list[str] = field(default_factory=list)
    problems: list[_Problem] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)


def read_folder(spec: DataSpec, report: Report) -> FolderImages:
    """Reads all pictures of a folder.

    Args:
        spec: A `folder:PATH` and how to read it.
        report: Called with a line to begin with, and one for each of the first files
            that are left out.

    Raises:
        DataMissing: There is no such folder.
        DataError: It has no, too few or too large pictures, ones that cannot be read
            and are not to be left out, or ones both beside and in subfolders.
        ConfigError: The pictures differ in size and `spec` names none.
    """
    folder = spec.folder
    listing = _find(folder)
    labelled = _labelled(folder, listing.paths)
    report(f"reading {len(listing.paths)} images from {folder}")
    pictures, unreadable = _read(spec, listing.paths)
    problems = sorted(listing.problems + unreadable, key=lambda problem: problem.path)
    if problems and spec.bad_files == "refuse":
        first = problems[0]
        raise DataError(
            f"{folder}: {len(problems)} of {len(problems) + len(pictures)} images cannot be used, "
            f"the first: {first.path}: {first.reason}. Remedy: mend or remove them, or "
            "--bad-files skip"
        )
    for problem in problems[:_NAMED]:
        report(f"skipped {problem.path}: {problem.reason}")
    if len(problems) > _NAMED:
        report(f"skipped {len(problems) - _NAMED} more")
    if len(pictures) < FEWEST_IMAGES:
        raise DataError(f"{folder}: {len(pictures)} usable images, wanted {FEWEST_IMAGES} or more")
    class_names = _class_names(folder, pictures) if labelled else ()
    digest = hashlib.sha256()
    for picture in pictures:
        digest.update(os.fsencode(picture.path) + b"\0" + picture.sha256.encode() + b"\n")
    return FolderImages(
        splits=_assemble(folder, pictures, class_names),
        class_names=class_names,
        sha256=digest.hexdigest(),
        skipped=tuple(problem.path for problem in problems),
    )


def split_by_hash(paths: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """Divides pictures into those to train on, to validate on and to test on.

    Args:
        paths: The path of each within its folder.

    Returns:
        For each split the indices of its pictures, ascending.
    """
    tenth = 2**64 // 10
    test: list[int] = []
    validation: list[tuple[int, int]] = []
    for index, path in enumerate(paths):
        value = int.from_bytes(hashlib.sha256(os.fsencode(path)).digest()[:8], "big")
        if value < tenth:
            test.append(index)
        elif value < 2 * tenth:
            validation.append((value, index))
    watched = sorted(index for _, index in sorted(validation)[:MOST_VALIDATION])
    train = sorted(set(range(len(paths))).difference(test, watched))
    return train, watched, test


def _find(folder: Path) -> _Listing:
    """Returns what is in a folder, sorted by path; there is a picture or a problem."""
    listing = _Listing()
    try:
        there = folder.stat()
        _walk(folder, "", ((there.st_dev, there.st_ino),), listing)
    except FileNotFoundError as error:
        raise DataMissing(f"{folder}: there is no such folder") from error
    except OSError as error:
        raise DataError(f"{folder}: {_reason(error)}") from error
    if not listing.paths and not listing.problems:
        kinds = ", ".join(f"{count} {suffix}" for suffix, count in listing.others.most_common(5))
        raise DataError(
            f"{folder}: no images, wanted files named {', '.join(sorted(SUFFIXES))}"
            + (f"; there are {kinds}" if kinds else "")
        )
    listing.paths.sort()
    return listing


def _walk(folder: Path, within: str, above: tuple[tuple[int, int], ...], listing: _Listing) -> None:
    """Adds what is in `folder` to the listing.

    Args:
        folder: The folder to look through.
        within: Its path within the data set, empty or ending in a slash.
        above: Device and inode of it and of each folder it was reached through.
        listing: What there is so far.

    Raises:
        OSError: `folder` cannot be listed; one in it that cannot is a problem.
    """
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if not entry.name.startswith(".")]
    for name in names:
        suffix = PurePosixPath(name).suffix.lower()
        try:
            state = (folder / name).stat()
        except OSError as error:  # a link that leads nowhere, for example
            if suffix in SUFFIXES:
                listing.problems.append(_Problem(within + name, _reason(error)))
            continue
        identity = state.st_dev, state.st_ino
        if stat.S_ISDIR(state.st_mode):
            if identity in above:
                continue
            try:
                _walk(folder / name, f"{within}{name}/", (*above, identity), listing)
            except OSError as error:
                listing.problems.append(_Problem(f"{within}{name}/", _reason(error)))
        elif suffix in SUFFIXES and stat.S_ISREG(state.st_mode):
            listing.paths.append(within + name)
        else:
            listing.others[suffix or "without a suffix"] += 1


def _labelled(folder: Path, paths: Sequence[str]) -> bool:
    beside = sum("/" not in path for path in paths)
    if 0 < beside < len(paths):
        raise DataError(
            f"{folder}: {beside} images lie beside its subfolders and {len(paths) - beside} in "
            "them; wanted all in subfolders, one for each class, or all beside each other"
        )
    return beside == 0


def _read(spec: DataSpec, paths: Sequence[str]) -> tuple[list[_Picture], list[_Problem]]:
    """Returns the pictures and the files that are none, both in the order of `paths`."""
    pictures: list[_Picture] = []
    problems: list[_Problem] = []
    read = functools.partial(_read_one, spec)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        # In blocks: a million tasks at once are gigabytes of bookkeeping.
        for start in range(0, len(paths), _BLOCK):
            for result in pool.map(read, paths[start : start + _BLOCK]):
                if isinstance(result, _Problem):
                    problems.append(result)
                    continue
                pictures.append(result)
                _refuse_other_size(spec.folder, pictures[0], result)
                refuse_too_many(str(spec.folder), len(paths), result.pixels.nbytes)
    return pictures, problems


def _read_one(spec: DataSpec, path: str) -> _Picture | _Problem:
    try:
        raw = (spec.folder / path).read_bytes()
        pixels = decode(raw, spec.size, spec.channels)
    except OSError as error:
        return _Problem(path, _reason(error))
    except PictureError as error:
        return _Problem(path, str(error))
    return _Picture(path, hashlib.sha256(raw).hexdigest(), pixels)


def _reason(error: OSError) -> str:
    return error.strerror or str(error)


def _refuse_other_size(folder: Path, first: _Picture, picture: _Picture) -> None:
    (_, *wanted), (_, *got) = first.pixels.shape, picture.pixels.shape
    if got != wanted:
        raise ConfigError(
            f"image_size: got none, but the images of {folder} differ in size: {first.path} has "
            f"{wanted[1]}x{wanted[0]} pixels, {picture.path} has {got[1]}x{got[0]}. "
            "Wanted one size for all: --image-size"
        )


def _class_names(folder: Path, pictures: Sequence[_Picture]) -> tuple[str, ...]:
    names = sorted({picture.path.partition("/")[0] for picture in pictures})
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:  # config and manifest are JSON in UTF-8
            raise DataError(f"{folder}: the class {name!r}, wanted a name in UTF-8") from error
    return tuple(names)


def _assemble(
    folder: Path, pictures: list[_Picture], class_names: tuple[str, ...]
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], ...]:
    """Returns the images and labels of each split; empties `pictures` to hold pixels once."""
    splits = split_by_hash([picture.path for picture in pictures])
    for name, indices in zip(("train", "validation", "test"), splits, strict=True):
        if not indices:
            raise DataError(
                f"{folder}: none of its {len(pictures)} images falls to the {name} split, wanted "
                "at least one; a tenth does on average, so a few more images will do"
            )
    channels = max(picture.pixels.shape[0] for picture in pictures)
    images = np.empty((len(pictures), channels, *pictures[0].pixels.shape[1:]), np.uint8)
    labels = np.zeros(len(pictures), np.int64)
    classes = {name: index for index, name in enumerate(class_names)}
    places = np.argsort(np.concatenate(splits))
    while pictures:
        picture = pictures.pop()
        place = places[len(pictures)]
        images[place] = picture.pixels  # a grey one in all three channels
        labels[place] = classes.get(picture.path.partition("/")[0], 0)
    ends = np.cumsum([len(indices) for indices in splits])
    return tuple(
        (images[end - len(indices) : end], labels[end - len(indices) : end])
        for indices, end in zip(splits, ends, strict=True)
    )
