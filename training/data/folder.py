"""A folder of pictures as a data set.

Its subfolders are the classes; without subfolders there are no labels. The folder is
walked to any depth and symbolic links are followed, except back into a folder that
contains them. Hidden files and those of other types (`Thumbs.db`, `notes.txt`) are
ignored.

A hash of a picture's path within the folder decides its split: a tenth goes to the test split,
another tenth to the validation split. Other pictures therefore stay in their splits when one is
added, with one exception: the validation split holds at most `MAX_VALIDATION` pictures, those with
the smallest hashes. The rest of its tenth goes to the training split, so an added picture can move
another one there.

Pictures of one thing must share a split, or the test split would hold near copies of what is
trained on. Those whose paths differ only between an `@` in the name and the suffix do: `icon.png`,
`icon@2x.png` and `icon@dark.png` have the same hash.
"""

import functools
import hashlib
import os
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from common.pictures import SUFFIXES, PictureError, decode
from latentserve._files import reason
from latentserve._walk import Listing, Problem, walk
from training.data.download import Report
from training.data.memory import refuse_too_many
from training.data.spec import DataSpec
from training.errors import ConfigError, DataError, DataMissing

MIN_IMAGES = 20
MAX_VALIDATION = 5_000

_BLOCK = 1024
_NAMED = 10
_VARIANT = re.compile(r"(?<=[^/])@[^/@]*(?=\.[^./@]*\Z)")


@dataclass(frozen=True)
class FolderImages:
    """The images of a folder, decoded and split.

    Attributes:
        splits: Images uint8 [N, C, H, W] and labels int64 [N] of the training, the
            validation and the test split, each sorted by path.
        class_names: Name of each class; empty without labels, which are then all 0.
        sha256: SHA-256 over the path and the content of every image used.
        skipped: Paths, within the folder, of the files that could not be used.
    """

    splits: tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], ...]
    class_names: tuple[str, ...]
    sha256: str
    skipped: tuple[str, ...]


@dataclass(frozen=True)
class _Picture:
    """A decoded file: its path within the folder, its SHA-256, its pixels [C, H, W]."""

    path: str
    sha256: str
    pixels: NDArray[np.uint8]


def read_folder(spec: DataSpec, report: Report) -> FolderImages:
    """Reads all pictures of a folder.

    Args:
        spec: A `folder:PATH`, with the size and channels to convert the pictures to.
        report: Called with a line before reading, and with one for each of the first
            files that are skipped.

    Raises:
        DataMissing: There is no such folder.
        DataError: There are too few pictures, or more than fit in memory; some cannot be
            read and `spec` does not skip them; or only some are in subfolders.
        ConfigError: The pictures differ in size and `spec` gives no size.
    """
    folder = spec.path
    listing = _find(folder)
    labelled = _labelled(folder, listing.paths)
    report(f"reading {len(listing.paths)} images from {folder}")
    if listing.others:
        report(f"ignored {listing.describe_ignored()}")
    pictures, unreadable = _read(spec, listing.paths)
    problems = sorted(listing.problems + unreadable, key=lambda problem: problem.path)
    if problems and spec.bad_files == "refuse":
        first = problems[0]
        raise DataError(
            f"{folder}: {len(problems)} of {len(problems) + len(pictures)} images cannot be used, "
            f"the first: {first.path}: {first.reason}. Remedy: repair or remove them, or "
            "--bad-files skip"
        )
    for problem in problems[:_NAMED]:
        report(f"skipped {problem.path}: {problem.reason}")
    if len(problems) > _NAMED:
        report(f"skipped {len(problems) - _NAMED} more")
    if len(pictures) < MIN_IMAGES:
        raise DataError(f"{folder}: {len(pictures)} usable images, wanted {MIN_IMAGES} or more")
    class_names = _class_names(folder, pictures) if labelled else ()
    digest = hashlib.sha256()
    if any(split_key(picture.path) != picture.path for picture in pictures):
        digest.update(b"@\n")  # or a run that split them by their whole paths had the same
    for picture in pictures:
        digest.update(os.fsencode(picture.path) + b"\0" + picture.sha256.encode() + b"\n")
    return FolderImages(
        splits=_assemble(folder, pictures, class_names),
        class_names=class_names,
        sha256=digest.hexdigest(),
        skipped=tuple(problem.path for problem in problems),
    )


def split_key(path: str) -> str:
    """What is hashed of a picture's path: all but what is between an `@` and the suffix."""
    return _VARIANT.sub("", path)


def split_by_hash(paths: Sequence[str]) -> tuple[list[int], list[int], list[int]]:
    """Divides pictures into a training, a validation and a test split.

    Args:
        paths: Path of each picture within its folder.

    Returns:
        The indices of the pictures of each split, ascending.
    """
    tenth = 2**64 // 10
    test: list[int] = []
    validation: list[tuple[int, int]] = []
    for index, path in enumerate(paths):
        key = os.fsencode(split_key(path))
        value = int.from_bytes(hashlib.sha256(key).digest()[:8], "big")
        if value < tenth:
            test.append(index)
        elif value < 2 * tenth:
            validation.append((value, index))
    first_not = sorted(validation)[MAX_VALIDATION:][:1]  # pictures of one hash stay together
    end = first_not[0][0] if first_not else 2 * tenth
    validated = [index for value, index in validation if value < end]
    train = sorted(set(range(len(paths))).difference(test, validated))
    return train, validated, test


def _find(folder: Path) -> Listing:
    """Lists the files below a folder, sorted by path.

    Raises:
        DataMissing: There is no such folder.
        DataError: The folder cannot be listed, or has no files named like pictures.
    """
    try:
        listing = walk(folder, SUFFIXES)
    except FileNotFoundError as error:
        raise DataMissing(f"{folder}: there is no such folder") from error
    except OSError as error:
        raise DataError(f"{folder}: {reason(error)}") from error
    if not listing.paths and not listing.problems:
        others = listing.describe_ignored()
        raise DataError(
            f"{folder}: no images, wanted files named {', '.join(sorted(SUFFIXES))}"
            + (f"; there are {others}" if others else "")
        )
    return listing


def _labelled(folder: Path, paths: Sequence[str]) -> bool:
    """Whether the pictures are in subfolders, which are their classes.

    Raises:
        DataError: Only some of the pictures are in subfolders.
    """
    outside = sum("/" not in path for path in paths)
    if 0 < outside < len(paths):
        raise DataError(
            f"{folder}: {outside} images are outside its subfolders and {len(paths) - outside} in "
            "them; wanted all in subfolders, one for each class, or none"
        )
    return outside == 0


def _read(spec: DataSpec, paths: Sequence[str]) -> tuple[list[_Picture], list[Problem]]:
    """Decodes files; returns the pictures and the problems, both in the order of `paths`."""
    pictures: list[_Picture] = []
    problems: list[Problem] = []
    read = functools.partial(_read_one, spec)
    with ThreadPoolExecutor(usable_cpus()) as pool:
        # In blocks: a million futures at once would take gigabytes.
        for start in range(0, len(paths), _BLOCK):
            for result in pool.map(read, paths[start : start + _BLOCK]):
                if isinstance(result, Problem):
                    problems.append(result)
                    continue
                pictures.append(result)
                _refuse_other_size(spec.path, pictures[0], result)
                refuse_too_many(str(spec.path), len(paths), result.pixels.nbytes)
    return pictures, problems


def _read_one(spec: DataSpec, path: str) -> _Picture | Problem:
    try:
        raw = (spec.path / path).read_bytes()
        pixels = decode(raw, spec.image_size, spec.channels, spec.fit, spec.background_colour)
    except OSError as error:
        return Problem(path, reason(error))
    except PictureError as error:
        return Problem(path, str(error))
    return _Picture(path, hashlib.sha256(raw).hexdigest(), pixels)


def _refuse_other_size(folder: Path, first: _Picture, picture: _Picture) -> None:
    """Raises ConfigError if two pictures differ in height or width."""
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
        except UnicodeEncodeError as error:  # it is written into JSON, which is UTF-8
            raise DataError(f"{folder}: the class {name!r}, wanted a name in UTF-8") from error
    return tuple(names)


def _assemble(
    folder: Path, pictures: list[_Picture], class_names: tuple[str, ...]
) -> tuple[tuple[NDArray[np.uint8], NDArray[np.int64]], ...]:
    """Returns images and labels of each split.

    Empties `pictures` as it copies them, so that memory does not hold all pixels twice.
    """
    splits = split_by_hash([picture.path for picture in pictures])
    for name, indices in zip(("train", "validation", "test"), splits, strict=True):
        if not indices:
            raise DataError(
                f"{folder}: none of its {len(pictures)} images is in the {name} split, wanted at "
                "least one; splits are chosen by a hash of the path, so add a few more images"
            )
    channels = max(picture.pixels.shape[0] for picture in pictures)
    images = np.empty((len(pictures), channels, *pictures[0].pixels.shape[1:]), np.uint8)
    labels = np.zeros(len(pictures), np.int64)
    classes = {name: index for index, name in enumerate(class_names)}
    places = np.argsort(np.concatenate(splits))
    while pictures:
        picture = pictures.pop()
        place = places[len(pictures)]
        images[place] = picture.pixels  # grey is broadcast to three channels
        labels[place] = classes.get(picture.path.partition("/")[0], 0)
    ends = np.cumsum([len(indices) for indices in splits])
    return tuple(
        (images[end - len(indices) : end], labels[end - len(indices) : end])
        for indices, end in zip(splits, ends, strict=True)
    )
