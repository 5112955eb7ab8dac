"""Writers of shards: rows of one size, in one Parquet file or one npy file per array.

The bytes of a shard depend only on its rows. They are written to hidden files, which get their
final names when the shard is committed.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from latentserve._jobs import npy
from latentserve._jobs.files import HashedFile, Written

Format = Literal["npy", "parquet"]
FORMATS: tuple[Format, ...] = ("npy", "parquet")

# Maximum size of a row group of a Parquet file, which is held in memory.
_GROUP_BYTES = 16 * 2**20
# Versions of the writers, raised when their bytes change: a resumed job must not mix versions.
_NPY, _PARQUET = "npy 1", "parquet 1"


class MissingPackage(ImportError):
    """A package that an option needs is not installed."""


@dataclass(frozen=True)
class Column:
    """An array that a job writes.

    Attributes:
        name: Name of the array, for example `mean`.
        dtype: Name of the array's dtype, `float32`, `uint8` or `int32`.
        shape: Shape of one row; empty for a number.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]


class ShardWriter(Protocol):
    """Context manager that writes a shard, and deletes it unless `finish` is called."""

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Appends N rows: an array [N, ...] for each column, by name."""

    def finish(self) -> list[Written]:
        """Fsyncs the files and leaves them, hidden, to be renamed."""

    def __enter__(self) -> "ShardWriter": ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def writer(shard_format: Format) -> str:
    """Returns the name of a format's writer, with the versions that its bytes depend on.

    Raises:
        MissingPackage: pyarrow is not installed.
    """
    if shard_format == "npy":
        return _NPY
    return f"{_PARQUET}, pyarrow {load_pyarrow().__version__}"


def file_names(columns: tuple[Column, ...], shard_format: Format, label: str) -> list[str]:
    """Returns the names of a shard's files.

    Args:
        columns: Arrays that the job writes.
        shard_format: Format of the files.
        label: Label of the shard.
    """
    if shard_format == "parquet":
        return [f"rows-{label}.parquet"]
    return [f"{column.name}-{label}.npy" for column in columns]


def open_shard(
    folder: Path,
    columns: tuple[Column, ...],
    names: Sequence[str],
    shard_format: Format,
    *,
    attempt: str,
    rows: Sequence[int] | NDArray[np.int64],
    offset: int,
) -> ShardWriter:
    """Opens a new shard.

    Args:
        folder: Folder of the job.
        columns: Arrays that the job writes.
        names: Names of the shard's files, from `file_names`.
        shard_format: Format of the files.
        attempt: Identifies the attempt to compute the shard, in the names of the hidden files.
        rows: Numbers of the rows that the shard will have.
        offset: Added to the numbers in the `row` column of a Parquet file.

    Raises:
        MissingPackage: pyarrow is not installed.
        OSError: The files cannot be created.
    """
    if shard_format == "parquet":
        load_pyarrow()  # before a file is created
        return _ParquetShard(columns, HashedFile(folder, names[0], attempt), rows, offset)
    return _NpyShard(folder, columns, names, attempt, len(rows))


class _NpyShard:
    """A shard of one npy file per column, written without collecting rows in memory."""

    def __init__(
        self,
        folder: Path,
        columns: tuple[Column, ...],
        names: Sequence[str],
        attempt: str,
        rows: int,
    ):
        self._files: dict[str, HashedFile] = {}
        try:
            for column, name in zip(columns, names, strict=True):
                self._files[column.name] = HashedFile(folder, name, attempt)
                dtype = np.dtype(column.dtype).newbyteorder("<")
                self._files[column.name].write(npy.header(dtype, (rows, *column.shape)))
        except BaseException:
            self._drop()
            raise

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        for name, file in self._files.items():
            array = arrays[name]
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data)

    def finish(self) -> list[Written]:
        return _finished(list(self._files.values()))

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._drop()

    def _drop(self) -> None:
        for file in self._files.values():
            file.drop()


class _ParquetShard:
    """A shard of one Parquet file: a `row` column with row numbers, and a column per array."""

    def __init__(
        self,
        columns: tuple[Column, ...],
        file: HashedFile,
        rows: Sequence[int] | NDArray[np.int64],
        offset: int,
    ):
        pa = load_pyarrow()
        self._columns, self._file = columns, file
        self._rows, self._offset, self._next = rows, np.uint64(offset), 0
        self._types = {
            column.name: pa.fixed_shape_tensor(
                pa.from_numpy_dtype(np.dtype(column.dtype)), column.shape
            )
            if column.shape
            else pa.from_numpy_dtype(np.dtype(column.dtype))
            for column in columns
        }
        self._schema = pa.schema([("row", pa.uint64()), *self._types.items()])
        row_bytes = sum(
            np.dtype(column.dtype).itemsize * int(np.prod(column.shape)) for column in columns
        )
        self._group = max(1, min(len(rows), _GROUP_BYTES // max(1, row_bytes)))
        self._waiting: list[Mapping[str, NDArray[Any]]] = []
        self._rows_waiting = 0
        # Sets every option that the bytes depend on, since defaults may change.
        self._writer = pa.parquet.ParquetWriter(
            self._file,
            self._schema,
            version="2.6",
            data_page_version="1.0",
            compression="zstd",
            compression_level=3,
            use_dictionary=False,
            write_statistics=False,
        )

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        self._waiting.append(arrays)
        self._rows_waiting += len(next(iter(arrays.values())))
        while self._rows_waiting >= self._group:
            self._write_group(self._group)

    def finish(self) -> list[Written]:
        if self._rows_waiting:
            self._write_group(self._rows_waiting)
        self._writer.close()
        return _finished([self._file])

    def _write_group(self, rows: int) -> None:
        pa = load_pyarrow()
        joined = {
            column.name: np.concatenate([piece[column.name] for piece in self._waiting])
            for column in self._columns
        }
        numbers = np.array(self._rows[self._next : self._next + rows], np.uint64) + self._offset
        group = [pa.array(numbers)]
        for name, extension in self._types.items():
            flat = pa.array(joined[name][:rows].reshape(-1))
            if joined[name].ndim == 1:
                group.append(flat)
                continue
            storage = pa.FixedSizeListArray.from_arrays(flat, len(flat) // rows)
            group.append(pa.ExtensionArray.from_storage(extension, storage))
        self._writer.write_table(pa.table(group, schema=self._schema), row_group_size=rows)
        self._waiting = [{name: array[rows:] for name, array in joined.items()}]
        self._rows_waiting -= rows
        self._next += rows

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # An open writer writes the file's footer when it is garbage-collected, after the file is
        # closed. Closing the writer here may fail too, on a full disk.
        with contextlib.suppress(Exception):
            self._writer.close()
        self._file.drop()


def _finished(files: Sequence[HashedFile]) -> list[Written]:
    """Fsyncs files, and leaves them to be renamed once all are durable."""
    written = [file.sync() for file in files]
    for file in files:
        file.keep()
    return written


def load_pyarrow() -> Any:
    """Imports pyarrow, which is optional.

    Raises:
        MissingPackage: It is not installed.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingPackage(
            "format parquet: the package pyarrow is missing (pip install pyarrow)"
        ) from error
    return pyarrow
