"""The latents of a finished job as the source of another one, in the order of its rows."""

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._jobs.arrays import Arrays, RowFile
from latentserve._jobs.errors import SourceError
from latentserve._jobs.folder import CURSOR, MANIFEST, CompleteShard, read_cursor
from latentserve._jobs.labels import RowLabels
from latentserve._jobs.npy import NpyFile
from latentserve._jobs.places import Place, Stamp, check_stamp, stamp_of
from latentserve._jobs.writers import load_pyarrow

# Arrays of latents that a job may write; the first one that is there is read.
_LATENTS = ("z", "mean", "latents")


def latents_of(folder: Place) -> tuple[Arrays, bool, RowLabels | None]:
    """Opens the latents of a finished encode or sample job: `z`, else `mean`, else `latents`.

    Returns:
        The latents, whether they are scaled, and the labels of their rows if the job wrote some.

    Raises:
        OSError: A file cannot be read.
        SourceError: The folder is not that of a finished job, or the job wrote no latents.
        MissingPackage: The files are Parquet files, and pyarrow is not installed.
    """
    manifest, shards = _finished(folder)
    name = next((name for name in _LATENTS if name in manifest["arrays"]), None)
    if name is None:
        arrays = ", ".join(manifest["arrays"])
        raise SourceError(f"{folder}: got a job with {arrays}, wanted one with latents")
    files: list[RowFile] = []
    numbers: list[Sequence[int]] = []
    row = 0
    for shard in shards:
        if manifest.get("format") == "parquet":
            files.append(ParquetColumn.open(folder / shard.files[0].name, name))
        else:
            path = next(file.name for file in shard.files if file.name.startswith(f"{name}-"))
            files.append(NpyFile.open(folder / path))
        if files[-1].shape[0] != shard.rows:
            raise SourceError(
                f"{files[-1].path}: got {files[-1].shape[0]} rows, wanted {shard.rows}"
            )
        numbers.append(shard.row_numbers or range(row, row + shard.rows))
        row += shard.rows
    source = Arrays.of(files, numbers)
    labels = None
    if "labels" in manifest["arrays"]:
        values = np.empty(source.rows, np.int32)
        several = len(source.parts) > 1
        row = 0
        for shard, rows in zip(shards, numbers, strict=True):
            place = rows if several else slice(row, row + shard.rows)
            values[place] = _labels_of(folder, shard)
            row += shard.rows
        labels = RowLabels("job", str(folder), values)
    return source, bool(manifest["settings"].get("scaled")), labels


def _labels_of(folder: Place, shard: CompleteShard) -> NDArray[Any]:
    """Reads the labels of a shard.

    Raises:
        OSError: The file cannot be read.
        SourceError: The file is damaged.
    """
    file = next((file.name for file in shard.files if file.name.startswith("labels-")), "")
    path = folder / (file or shard.files[0].name)
    try:
        if file:
            values = np.lib.format.read_array(io.BytesIO(path.read_bytes()), allow_pickle=False)
        else:
            pa = load_pyarrow()
            with path.open("rb") as raw:
                values = pa.parquet.read_table(raw, columns=["labels"])["labels"].to_numpy()
    except OSError:
        raise
    except Exception as error:  # NumPy and pyarrow raise many types
        raise SourceError(f"{path}: the labels of its rows cannot be read") from error
    if values.shape != (shard.rows,):
        raise SourceError(f"{path}: got {len(values)} labels, wanted {shard.rows}")
    return np.asarray(values)


def _finished(folder: Place) -> tuple[dict[str, Any], list[CompleteShard]]:
    """Returns manifest and shards of a job.

    Raises:
        OSError: A file cannot be read.
        SourceError: There is no job, or it is not finished.
    """
    if not (folder / MANIFEST).exists():
        raise SourceError(f"{folder}: got a folder without {MANIFEST}, wanted npy files or a job")
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        rows, _, _ = int(manifest["rows"]), manifest["settings"].keys(), manifest["arrays"].keys()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SourceError(f"{folder / MANIFEST}: not the manifest of a job") from error
    cursor = folder / CURSOR
    content = cursor.read_bytes() if cursor.exists() else b""
    shards = {shard.shard: shard for shard in read_cursor(content)}
    complete = sum(shard.rows for shard in shards.values())
    if complete != rows:
        raise SourceError(f"{folder}: got a job with {complete} of {rows} rows, wanted a whole one")
    return manifest, [shards[number] for number in sorted(shards)]


@dataclass
class ParquetColumn:
    """An array in a Parquet file whose metadata have been read.

    Attributes:
        path: Path or URL of the file.
        dtype: Dtype of the array.
        shape: Shape of the array, whose first axis is the rows.
        name: Name of the column.
        stamp: Size, and time or stamp of the file when it was opened.
        begins: Index of the first row of each row group, and the number of rows.
    """

    path: Place
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    name: str
    stamp: Stamp
    begins: NDArray[np.int64]
    _latest: tuple[int, NDArray[Any]] | None = None

    @classmethod
    def open(cls, path: Place, name: str) -> "ParquetColumn":
        """Reads the metadata of a file.

        Raises:
            OSError: The file cannot be read.
            SourceError: The file is not a Parquet file with such an array.
            MissingPackage: pyarrow is not installed.
        """
        pa, stamp = load_pyarrow(), stamp_of(path)
        try:
            with path.open("rb") as raw, pa.parquet.ParquetFile(raw) as file:
                column, metadata = file.schema_arrow.field(name).type, file.metadata
                shape, dtype = tuple(column.shape), np.dtype(column.value_type.to_pandas_dtype())
                groups = [metadata.row_group(n).num_rows for n in range(metadata.num_row_groups)]
        except (pa.ArrowException, KeyError, AttributeError) as error:
            raise SourceError(f"{path}: not a Parquet file with {name}") from error
        begins = np.cumsum([0, *groups])
        return cls(path, dtype, (int(begins[-1]), *shape), name, stamp, begins)

    def check(self) -> None:
        """Checks that the file is the one that was opened, possibly by another process.

        Raises:
            OSError: The file cannot be read.
            SourceError: Its size, or its time or stamp differs.
        """
        check_stamp(self.path, self.stamp)

    def absolute(self) -> "ParquetColumn":
        """Returns the same file with an absolute path, and without the rows it has read."""
        return replace(self, path=self.path.absolute(), _latest=None)

    def read(self, start: int, stop: int) -> NDArray[Any]:
        """Reads the rows from `start` up to, but not including, `stop`.

        Raises:
            OSError: The file cannot be read.
            SourceError: The file was changed after it was opened.
        """
        if stamp_of(self.path) != self.stamp:
            raise SourceError(f"{self.path}: was changed while it was being read")
        pieces = []
        while start < stop:
            group = int(np.searchsorted(self.begins, start, "right")) - 1
            begin, end = self.begins[group : group + 2]
            pieces.append(self._group(group)[start - begin : min(stop, end) - begin])
            start = int(min(stop, end))
        if start == self.shape[0]:
            self._latest = None  # so that only one of many files has a row group in memory
        return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)

    def _group(self, group: int) -> NDArray[Any]:
        """Reads a row group, which is at most a few megabytes; keeps the latest one."""
        if self._latest is None or self._latest[0] != group:
            with self.path.open("rb") as raw, load_pyarrow().parquet.ParquetFile(raw) as file:
                column = file.read_row_group(group, columns=[self.name])[self.name]
            array = column.combine_chunks().to_numpy_ndarray()
            self._latest = group, np.ascontiguousarray(array)
        return self._latest[1]
