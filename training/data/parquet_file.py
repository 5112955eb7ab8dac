"""One Parquet file of images: its columns, its labels, its encoded images row by row."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError, DataError, DataMissing

# Rows of a batch, which is in memory at once.
_BATCH = 64
# Names to prefer where several columns could be meant.
_IMAGES = ("image", "img", "images", "picture")
_LABELS = ("label", "labels", "class", "category", "target", "fine_label")


@dataclass(frozen=True)
class Columns:
    """The columns of a file that are used.

    Attributes:
        image: Name of the column of encoded images.
        label: Name of the column of labels; None without labels.
        names: Names of the labels where these are numbers; empty if the file tells none.
    """

    image: str
    label: str | None
    names: tuple[str, ...]


@dataclass(frozen=True)
class ParquetFile:
    """A Parquet file whose columns have been found.

    Attributes:
        path: The file.
        rows: Number of rows.
        columns: The columns that are used.
    """

    path: Path
    rows: int
    columns: Columns

    @classmethod
    def open(cls, path: Path) -> "ParquetFile":
        """Reads a file's metadata.

        Raises:
            DataMissing: There is no such file.
            DataError: It is damaged, or has no column of images.
            ConfigError: pyarrow is not installed.
        """
        with _reading(path) as file:
            return cls(path, file.metadata.num_rows, _find_columns(file.schema_arrow, path))

    def labels(self) -> NDArray[Any] | None:
        """The labels: whole numbers, -1 where one is missing, or texts, "" where one is.

        None if the file has no labels: no such column, or not one value in it.

        Raises:
            DataError: The file is damaged.
        """
        if self.columns.label is None:
            return None
        with _reading(self.path) as file:
            column = file.read(columns=[self.columns.label]).column(0)
            if _is_dictionary(column.type):
                column = column.cast(column.type.value_type)
            texts = _is_text(column.type)
            if _is_integer(column.type):
                column = column.cast("int64")  # which has a -1, as uint8 has not
            values = column.fill_null("" if texts else False if _is_bool(column.type) else -1)
            if column.null_count == len(column):
                return None
            if texts:
                # Encoded first: an array of NumPy texts has the width of the longest of all.
                return np.array(values.to_pylist())
            found: NDArray[Any] = values.to_numpy()
            return None if (found == -1).all() else found

    def images(self) -> Iterator[bytes | None]:
        """The encoded images row by row; None where a row has none.

        Raises:
            DataError: The file is damaged.
        """
        with _reading(self.path) as file:
            for batch in file.iter_batches(_BATCH, columns=[self.columns.image], use_threads=False):
                column = batch.column(0)
                if _is_struct(column.type):
                    # Nulls of the struct are nulls of its field.
                    column = column.flatten()[column.type.get_field_index("bytes")]
                for value in column:
                    yield value.as_py()


@contextmanager
def _reading(path: Path) -> Iterator[Any]:
    """Opens a file with pyarrow; what goes wrong in the context becomes an error of training."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise ConfigError("data: parquet: needs pyarrow. Remedy: pip install pyarrow") from error
    try:
        # Mapped, so that a large row group is not read into memory as a whole.
        with pq.ParquetFile(path, memory_map=True) as file:
            yield file
    except FileNotFoundError as error:
        raise DataMissing(f"{path}: there is no such file") from error
    except (OSError, pa.ArrowException) as error:
        text = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{path}: damaged or not a Parquet file ({text})") from error


def _find_columns(schema: Any, path: Path) -> Columns:
    """Chooses the columns of a schema.

    Raises:
        DataError: There is no column of images, or it is unclear which one is.
    """
    features = _features(schema)
    images = [field.name for field in schema if _holds_bytes(field.type)]
    image = _chosen(images, [name for name in images if _type(features, name) == "Image"], _IMAGES)
    if image is None:
        types = ", ".join(f"{field.name} ({field.type})" for field in schema)
        raise DataError(
            f"{path}: {f'{len(images)} columns' if images else 'no column'} of encoded images, "
            "wanted one: a struct of bytes and a path, or binary, or else one named image; there "
            f"are {types}"
        )
    classes = [field.name for field in schema if _type(features, field.name) == "ClassLabel"]
    labels = [
        field.name
        for field in schema
        if field.name in (*_LABELS, *classes) and _is_label(field.type)
    ]
    preferred = [name for name in _LABELS if name in labels]
    label = next(iter([*preferred, *labels]), None)
    names = features.get(str(label), {}).get("names") if label in classes else None
    return Columns(
        image, label, tuple(str(name) for name in names) if isinstance(names, list) else ()
    )


def _chosen(all_of: list[str], marked: list[str], preferred: tuple[str, ...]) -> str | None:
    """The one column meant: that of the metadata, or the only one, or that of the usual name."""
    for names in (marked, all_of):
        if len(names) == 1:
            return names[0]
        for name in preferred:
            if name in names:
                return name
    return None


def _features(schema: Any) -> Mapping[str, Any]:
    """The description of each column that Hugging Face's `datasets` has written, if it has."""
    try:
        content = json.loads((schema.metadata or {})[b"huggingface"])
        features = content["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return features if isinstance(features, dict) else {}


def _type(features: Mapping[str, Any], name: str) -> str:
    feature = features.get(name)
    return str(feature.get("_type", "")) if isinstance(feature, dict) else ""


def _holds_bytes(kind: Any) -> bool:
    if _is_struct(kind):
        place = kind.get_field_index("bytes")
        return place >= 0 and _is_binary(kind.field(place).type)
    return _is_binary(kind)


def _is_binary(kind: Any) -> bool:
    return str(kind) in ("binary", "large_binary", "binary_view")


def _is_struct(kind: Any) -> bool:
    return str(kind).startswith("struct<")


def _is_dictionary(kind: Any) -> bool:
    return str(kind).startswith("dictionary<")


def _is_text(kind: Any) -> bool:
    return str(kind) in ("string", "large_string", "string_view")


def _is_bool(kind: Any) -> bool:
    return str(kind) == "bool"


def _is_integer(kind: Any) -> bool:
    return str(kind).lstrip("u").startswith("int")


def _is_label(kind: Any) -> bool:
    if _is_dictionary(kind):
        kind = kind.value_type
    return _is_text(kind) or _is_bool(kind) or _is_integer(kind)
