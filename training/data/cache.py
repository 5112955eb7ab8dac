"""Decoded images on disk: made once, then mapped into memory by every run that uses them.

A folder below the data folder for each specification of a data set:

images      uint8 [N, C, H, W], without a header
rows.npz    labels, the indices of each split, and groups if there are any
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
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from latentserve._files import atomic_write, fsync_folder, reason
from training.data.checks import Progress, block_sums, silent
from training.data.decoding import Pictures, decode_into, pictures_in_memory
from training.data.download import Report, data_dir
from training.data.pictures import Contents, PictureSource
from training.errors import DataError

_FORMAT = 1


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
            labels, groups = rows["labels"], rows.get("groups")
        names, sha256 = tuple(index["class_names"]), dict(index["sha256"])
        contents = Contents(labels, splits, names, sha256, groups)
        return Pictures(self._source.spec, images, contents, tuple(index["skipped"]))

    def _make(self) -> None:
        """Decodes the pictures into the temporary folder, and renames it when it is whole."""
        # First the old ones, since the disk may not have space for both.
        shutil.rmtree(self._folder, ignore_errors=True)
        self._remove_interrupted()
        self._temporary.mkdir()
        try:
            with (self._temporary / "images").open("wb+") as file:
                pixels, contents, skipped = decode_into(
                    self._source, file, self._report, self._progress
                )
            buffer = io.BytesIO()
            train, validation, test = contents.splits
            rows = {"train": train, "validation": validation, "test": test}
            if contents.groups is not None:
                rows["groups"] = contents.groups
            np.savez(buffer, labels=contents.labels, **rows)  # type: ignore[arg-type]
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
