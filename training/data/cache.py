"""Decoded images on disk: made once, then mapped into memory by every run that uses them.

A folder below the data folder for each specification of a data set:

images      uint8 [N, C, H, W], without a header
rows.npz    labels, and the indices of each split
index.json  shape, checksums of the two other files, state of the source; written last

The folder is made under another name and renamed when it is whole. A file lock beside it keeps
processes from making it twice. What is damaged, or was made of files that have changed since, is
made again.
"""

import fcntl
import hashlib
import io
import json
import math
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from latentserve._files import atomic_write, fsync_folder, reason
from latentserve._walk import Problem
from training.data.checks import Progress, block_sums, silent
from training.data.download import Report, data_dir
from training.data.pictures import Contents, PictureSource, decoded
from training.data.pixel_file import PixelFile
from training.data.spec import DataSpec
from training.errors import DataError

#: Most bytes of images that are held in memory.
IN_MEMORY = 1 << 30

_FORMAT = 1
# Most skipped files that are named.
_NAMED = 10


@dataclass(frozen=True)
class Pictures:
    """The decoded images of a source.

    Attributes:
        spec: The specification that they were found by.
        images: uint8 [N, C, H, W], a memory map unless the cache could not be used.
        contents: Their labels, splits and classes.
        skipped: Names of the files that could not be used.
    """

    spec: DataSpec
    images: NDArray[np.uint8]
    contents: Contents
    skipped: tuple[str, ...]


def decoded_pictures(
    source: PictureSource, root: Path | None, report: Report, progress: Progress = silent
) -> Pictures:
    """Finds the decoded images of a source in the cache, or decodes them into it.

    Where the cache cannot be written and the images fit into memory, they are decoded into
    memory.

    Args:
        source: The pictures.
        root: The data folder, in which there is the cache; `data_dir()` by default.
        report: Called with a line before decoding, and one for each of the first files skipped.
        progress: Called while images are decoded or checked.

    Raises:
        DataError: Pictures cannot be used, are too few, or cannot be kept.
        ConfigError: They differ in size and the specification gives no size.
    """
    try:
        folder = (root or data_dir()) / "decoded"
    except DataError as error:  # no home folder
        return pictures_in_memory(source, report, progress, str(error))
    try:
        return _Entry(source, folder, report, progress).found_or_made()
    except OSError as error:
        why = f"decoded images cannot be kept in {folder}: {reason(error)}"
    report(why)
    return pictures_in_memory(source, report, progress, why)


def pictures_in_memory(
    source: PictureSource, report: Report, progress: Progress = silent, why: str = ""
) -> Pictures:
    """Decodes the images of a source into memory, at most `IN_MEMORY` bytes of them.

    Args:
        source: The pictures.
        report: As for `decoded_pictures`.
        progress: As for `decoded_pictures`.
        why: Why they are not in the cache, for the message about images that do not fit.

    Raises:
        DataError: As for `decoded_pictures`, or they do not fit.
        ConfigError: As for `decoded_pictures`.
    """
    buffer = io.BytesIO()
    pixels, contents, skipped = _decode(source, buffer, report, progress, memory_only=why)
    images = np.frombuffer(buffer.getbuffer(), np.uint8).reshape(pixels.shape)
    return Pictures(source.spec, images, contents, skipped)


class _Entry:
    """The folder of one specification in the cache."""

    def __init__(self, source: PictureSource, root: Path, report: Report, progress: Progress):
        self._source, self._report, self._progress = source, report, progress
        self._state = source.state()
        spec = source.spec.to_json()
        key = hashlib.sha256(json.dumps([_FORMAT, spec], sort_keys=True).encode()).hexdigest()
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", Path(source.spec.origin).name)[:40].lstrip(".")
        self._folder = root / f"{name}-{key[:16]}"
        self._temporary = root / f".{self._folder.name}.tmp"
        self._lock = root / f".{self._folder.name}.lock"

    def found_or_made(self) -> Pictures:
        """The images of the folder, which is made if it is not there or cannot be used.

        Raises:
            OSError: The cache cannot be written.
        """
        self._lock.parent.mkdir(parents=True, exist_ok=True)
        while True:
            with self._locked(fcntl.LOCK_SH):
                index = self._index()
                problem = self._problem(index)
                if not problem:
                    return self._found(json.loads(index))
            with self._locked(fcntl.LOCK_EX):
                # Another process may have made it while this one waited.
                if self._index() == index:
                    if index:
                        self._report(f"{self._folder}: {problem}: decoding again")
                    self._make()
                    return self._open(json.loads(self._index()))

    @contextmanager
    def _locked(self, kind: int) -> Iterator[None]:
        try:
            lock = self._lock.open("a")
        except OSError:
            lock = self._lock.open("r")  # of a cache that may only be read
        with lock:
            try:
                fcntl.flock(lock, kind | fcntl.LOCK_NB)
            except BlockingIOError:
                self._report("waiting for another process that decodes the same images ...")
                fcntl.flock(lock, kind)
            yield

    def _index(self) -> bytes:
        """The content of index.json; empty if there is none."""
        try:
            return (self._folder / "index.json").read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return b""

    def _problem(self, index: bytes) -> str:
        """Why the folder cannot be used; empty if it can."""
        if not index:
            return "nothing is there"
        try:
            content = json.loads(index)
            if content["format"] != _FORMAT or content["state"] != self._state:
                return "the source has changed since"
            rows = (self._folder / "rows.npz").read_bytes()
            if hashlib.sha256(rows).hexdigest() != content["rows_sha256"]:
                return "rows.npz is damaged"
            images, shape = self._folder / "images", content["shape"]
            if images.stat().st_size != math.prod(shape):
                return f"images has {images.stat().st_size} bytes, wanted {math.prod(shape)}"
            sums = block_sums(images, shape[0], "checking", self._progress)
            if sums != content["blocks"]:
                return "images is damaged: a checksum is wrong"
            self._open(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            return f"damaged ({error})"
        return ""

    def _found(self, index: Any) -> Pictures:
        pictures = self._open(index)
        self._report(f"{len(pictures.images)} images, decoded before into {self._folder}")
        if pictures.skipped:
            skipped, first = len(pictures.skipped), pictures.skipped[0]
            self._report(f"without {skipped} that could not be used, the first: {first}")
        return pictures

    def _open(self, index: Any) -> Pictures:
        images = np.memmap(self._folder / "images", np.uint8, "r", shape=tuple(index["shape"]))
        with np.load(self._folder / "rows.npz", allow_pickle=False) as rows:
            splits = rows["train"], rows["validation"], rows["test"]
            labels = rows["labels"]
        names, sha256 = tuple(index["class_names"]), dict(index["sha256"])
        contents = Contents(labels, splits, names, sha256)
        return Pictures(self._source.spec, images, contents, tuple(index["skipped"]))

    def _make(self) -> None:
        """Decodes the pictures into the temporary folder, and renames it when it is whole."""
        # First the old ones, since the disk may not have space for both.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._remove_interrupted()
        self._temporary.mkdir()
        try:
            with (self._temporary / "images").open("wb+") as file:
                pixels, contents, skipped = _decode(
                    self._source, file, self._report, self._progress
                )
            buffer = io.BytesIO()
            train, validation, test = contents.splits
            np.savez(buffer, labels=contents.labels, train=train, validation=validation, test=test)
            (self._temporary / "rows.npz").write_bytes(buffer.getvalue())
            path = self._temporary / "images"
            index = {
                "format": _FORMAT,
                "spec": self._source.spec.to_json(),
                "state": self._state,
                "shape": pixels.shape,
                "blocks": block_sums(path, pixels.count, "checking", self._progress),
                "rows_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
                "class_names": contents.class_names,
                "sha256": contents.sha256,
                "skipped": skipped,
            }
            text = json.dumps(index, ensure_ascii=False)
            atomic_write(self._temporary / "index.json", text.encode())
            self._temporary.replace(self._folder)
            fsync_folder(self._folder.parent)
        finally:
            shutil.rmtree(self._temporary, ignore_errors=True)

    def _remove_interrupted(self) -> None:
        """Removes what killed processes have left, whose locks nobody holds any more."""
        shutil.rmtree(self._temporary, ignore_errors=True)
        for leftover in self._temporary.parent.glob(".*.tmp"):
            with leftover.with_suffix(".lock").open("a") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                shutil.rmtree(leftover, ignore_errors=True)


def _decode(
    source: PictureSource,
    file: BinaryIO,
    report: Report,
    progress: Progress,
    *,
    memory_only: str = "",
) -> tuple[PixelFile, Contents, tuple[str, ...]]:
    """Decodes the pictures of a source into a file.

    Args:
        source: The pictures.
        file: Where the pixels are written.
        report: As for `decoded_pictures`.
        progress: As for `decoded_pictures`.
        memory_only: Why the file is in memory; then pictures that do not fit are refused.

    Returns:
        The written file, what the source says about its pictures, and names of those skipped.

    Raises:
        DataError: As for `decoded_pictures`.
        ConfigError: As for `decoded_pictures`.
        OSError: The file cannot be written.
    """
    spec, total = source.spec, len(source)
    report(f"reading {total} images from {spec.origin}")
    pixels = PixelFile(file, total, spec.origin)
    digest, usable, problems = hashlib.sha256(), [], list(source.problems)
    for place, (item, result) in enumerate(decoded(source.items())):
        if isinstance(result, Problem):
            problems.append(result)
        else:
            image, sha256 = result
            if memory_only and total * image.nbytes > IN_MEMORY:
                raise DataError(
                    f"{memory_only}; they take {total * image.nbytes / 2**30:.1f} GiB. Remedy: set "
                    "LATENTSERVE_DATA_DIR to a folder that can be written and has as much free "
                    "space, or a smaller --image-size"
                )
            pixels.append(item.name, image)
            digest.update(os.fsencode(item.name) + b"\0" + sha256.encode() + b"\n")
            usable.append(place)
        progress("decoding", place + 1, total)
    if source.problems:
        problems.sort(key=lambda problem: problem.path)
    _refuse_or_name(source, len(usable), problems, report)
    pixels.finish()
    contents = source.contents(usable, digest.hexdigest())
    return pixels, contents, tuple(problem.path for problem in problems)


def _refuse_or_name(
    source: PictureSource, usable: int, problems: list[Problem], report: Report
) -> None:
    """Names the first problems.

    Raises:
        DataError: There are problems and they are not to be skipped.
    """
    if problems and source.spec.bad_files == "refuse":
        first = problems[0]
        raise DataError(
            f"{source.spec.origin}: {len(problems)} of {len(problems) + usable} images cannot be "
            f"used, the first: {first.path}: {first.reason}. Remedy: repair or remove them, or "
            "--bad-files skip"
        )
    for problem in problems[:_NAMED]:
        report(f"skipped {problem.path}: {problem.reason}")
    if len(problems) > _NAMED:
        report(f"skipped {len(problems) - _NAMED} more")
