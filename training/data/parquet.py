"""Parquet files as a source, in the layout in which image data sets are published.

A column of encoded images, each a struct of bytes and a path or the bytes alone, and a column
of labels: numbers, whose names are in the metadata that Hugging Face's `datasets` writes, or
texts. Splits are those that the names of the files tell, as in `train-00000-of-00005.parquet` or
`test/0000.parquet`; what they do not tell is chosen from the training files by position.
"""

import functools
import hashlib
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from common.pictures import PictureError
from latentserve._files import reason
from latentserve._walk import Problem, walk
from training.data.checks import file_sha256
from training.data.classes import class_indices
from training.data.download import Report
from training.data.parquet_file import ParquetFile
from training.data.pictures import Contents, Item, decode_file
from training.data.spec import DataSpec
from training.data.splits import MAX_VALIDATION, Splits, refuse_too_few, split_evenly, thinned
from training.errors import DataError, DataMissing

_PARTS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class _Table:
    """A file with its labels.

    Attributes:
        file: The file.
        part: `train`, `validation` or `test`; empty if its name does not tell.
        labels: As `ParquetFile.labels`.
    """

    file: ParquetFile
    part: str
    labels: NDArray[Any] | None


class ParquetSource:
    """The rows of one Parquet file, or of all those below a folder, sorted by path.

    Args:
        spec: A `parquet:PATH`.
        report: Called with lines about the columns that are used, and about files left out.

    Attributes:
        spec: As above.
        problems: Broken links, and subfolders that cannot be listed.
        at_a_time: As in `PictureSource`: files are on disk.

    Raises:
        DataMissing: There is no such file or folder.
        DataError: A file is damaged, or has no such columns, or labels are missing.
        ConfigError: pyarrow is not installed.
    """

    at_a_time = None

    def __init__(self, spec: DataSpec, report: Report):
        self.spec = spec
        paths, self.problems = _find(spec.path)
        files = [ParquetFile.open(path) for path in paths]
        for file in files:
            if replace(file.columns, names=()) != replace(files[0].columns, names=()):
                raise DataError(
                    f"{file.path}: columns {_described(file)}, wanted those of "
                    f"{files[0].path.name}: {_described(files[0])}"
                )
        tables = [_Table(file, _part(self._name(file)), file.labels()) for file in files]
        self._tables = _used(tables, report)
        self._labels, self._names = self._classes()
        columns = files[0].columns
        labels = f"column {columns.label}, {len(self._names)} classes" if self._names else "none"
        report(f"images: column {columns.image}; labels: {labels}")

    def __len__(self) -> int:
        return sum(table.file.rows for table in self._tables)

    def state(self) -> str:
        """A hash of the files' paths, sizes and times."""
        digest = hashlib.sha256()
        for table in self._tables:
            found = table.file.path.stat()
            digest.update(f"{table.file.path}\0{found.st_size} {found.st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def items(self) -> Iterator[Item]:
        """The images in order of the files and their rows.

        Raises:
            DataError: A file is damaged.
        """
        for table in self._tables:
            name = self._name(table.file)
            for row, raw in enumerate(table.file.images()):
                load = functools.partial(decode_file, self.spec, functools.partial(_given, raw))
                yield Item(f"{name}, row {row}", len(raw or b""), load)

    def contents(self, usable: Sequence[int], digest: str) -> Contents:  # noqa: ARG002
        """Classes by the column of labels, splits by the files' names or by position.

        Raises:
            DataError: There are too few.
        """
        refuse_too_few(self.spec.origin, len(usable))
        rows = np.array(usable, np.int64)
        train, validation, test = (
            np.searchsorted(rows, np.intersect1d(rows, part)) for part in self._splits()
        )
        files = [table.file for table in self._tables]
        with ThreadPoolExecutor(usable_cpus()) as pool:
            sums = pool.map(lambda file: file_sha256(file.path, 1), files)
            sha256 = {self._name(file): value for file, value in zip(files, sums, strict=True)}
        return Contents(self._labels[rows], (train, validation, test), self._names, sha256)

    def _splits(self) -> Splits:
        starts = np.cumsum([0, *(table.file.rows for table in self._tables)])
        ranges: dict[str, list[NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
        for table, start in zip(self._tables, starts, strict=False):
            ranges[table.part].append(np.arange(start, start + table.file.rows))
        pool = np.concatenate(ranges["train"])
        wanted = {part: not ranges[part] for part in ("validation", "test")}
        train, validation, test = (pool[part] for part in split_evenly(len(pool), **wanted))
        if ranges["validation"]:
            validation = thinned(np.concatenate(ranges["validation"]), MAX_VALIDATION)
        if ranges["test"]:
            test = np.concatenate(ranges["test"])
        return train, validation, test

    def _classes(self) -> tuple[NDArray[np.int64], tuple[str, ...]]:
        labels = [table.labels for table in self._tables if table.labels is not None]
        if not labels:
            return np.zeros(len(self), np.int64), ()
        columns = self._tables[0].file.columns
        for table in self._tables:
            if table.labels is None or (table.labels == _missing(table.labels)).any():
                raise DataError(
                    f"{table.file.path}: rows without a label in column {columns.label}, wanted a "
                    "label in all rows, or in none of all files"
                )
        origin = f"{self.spec.path}, column {columns.label}"
        return class_indices(np.concatenate(labels), origin, columns.names)

    def _name(self, file: ParquetFile) -> str:
        """Path of a file within the folder."""
        if file.path == self.spec.path:
            return file.path.name
        return file.path.relative_to(self.spec.path).as_posix()


def _find(path: Path) -> tuple[list[Path], list[Problem]]:
    """Lists the files of a source.

    Raises:
        DataMissing: There is nothing there.
        DataError: It cannot be listed, or has no Parquet files.
    """
    if not path.is_dir():
        return [path], []
    try:
        listing = walk(path, (".parquet",))
    except OSError as error:
        raise DataError(f"{path}: {reason(error)}") from error
    if not listing.paths:
        raise DataMissing(f"{path}: no files named .parquet")
    return [path / name for name in listing.paths], listing.problems


def _part(name: str) -> str:
    """The split that a file's name tells, or the nearest folder's; empty if none does."""
    for piece in reversed(Path(name.lower()).with_suffix("").parts):
        for word in re.split(r"[^a-z]+", piece):
            if word in _PARTS:
                return _PARTS[word]
    return ""


def _used(tables: Sequence[_Table], report: Report) -> list[_Table]:
    """The tables that are used, each with the part that it is used for."""
    told = {table.part for table in tables} - {""}
    if len(told) < 2:
        return [replace(table, part="train") for table in tables]
    if "train" not in told:
        raise DataError(
            f"{tables[0].file.path.parent}: files of {' and '.join(sorted(told))} alone, wanted "
            "some of train"
        )
    labelled = any(table.part == "train" and table.labels is not None for table in tables)
    used = []
    for table in tables:
        if not table.part:
            report(f"left out {table.file.path.name}: its name tells no split")
        elif labelled and table.labels is None:
            report(f"left out {table.file.path.name}: it has no labels")
        else:
            used.append(table)
    return used


def _missing(labels: NDArray[Any]) -> int | str:
    """What stands for a missing label in labels of this type."""
    return "" if labels.dtype.kind == "U" else -1


def _described(file: ParquetFile) -> str:
    return f"{file.columns.image} and {file.columns.label or 'no labels'}"


def _given(raw: bytes | None) -> bytes:
    if raw is None:
        raise PictureError("no image, or only the path of one")
    return raw
