"""Data sets as arrays, with their splits.

Images that take more than `training.data.decoding.IN_MEMORY` stay on disk and are read when
they are indexed.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.data import decoding
from training.data.array_files import idx_source, npy_source, public_source
from training.data.arrays import ArraySource
from training.data.cache import decoded_pictures
from training.data.checks import Progress, silent
from training.data.decoding import Pictures, pictures_in_memory
from training.data.download import Report, data_dir
from training.data.fetched import fetched
from training.data.folder import FolderSource
from training.data.parquet import ParquetSource
from training.data.rows import Images, Rows, concatenated
from training.data.spec import DataSpec
from training.errors import DataError


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 [N, C, H, W], to be read in chunks: they may be on disk.
        labels: int64 [N], indices into `Dataset.class_names`; all 0 if the data has no
            labels.
        groups: int64 [N], equal for images of one thing, such as the letters of a typeface; None if
            the data does not say what they are of. No group is in two splits.
    """

    images: Images
    labels: NDArray[np.int64]
    groups: NDArray[np.int64] | None = None

    def and_(self, other: "Split") -> "Split":
        """The images of this split, and after them those of another one of the same data set."""
        both = (self, other)
        groups = None
        if self.groups is not None and other.groups is not None:
            groups = np.concatenate([self.groups, other.groups])
        return Split(
            concatenated([split.images for split in both]),
            np.concatenate([split.labels for split in both]),
            groups,
        )


@dataclass(frozen=True)
class Dataset:
    """A data set and its three splits.

    Attributes:
        name: `DataSpec.source`, for example `mnist`.
        train: The images that the model is trained on.
        validation: The images that the model is measured on during training.
        test: The images that the model is measured on after training.
        class_names: Name of each class; empty if the data has no labels.
        sha256: SHA-256 of each source file's uncompressed content, by file name. A folder
            has a single entry, under its name, over the path and content of every image used.
        skipped: Paths, within a folder, of the files that could not be used.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    skipped: tuple[str, ...] = ()

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape of an image: C, H and W."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def load_dataset(
    spec: DataSpec | str,
    root: Path | None = None,
    report: Report = lambda _line: None,
    *,
    progress: Progress = silent,
    fetch: bool = True,
) -> Dataset:
    """Loads a data set; what is not on disk is downloaded first.

    Args:
        spec: The data set, or a string for `DataSpec.parse`, such as `mnist`.
        root: The cache folder; `training.data.download.data_dir()` by default.
        report: Called with one line per download, and for the first files that are
            skipped.
        progress: Called while images are decoded, and files checked.
        fetch: Whether a public data set may be downloaded.

    Raises:
        ConfigError: There is no data set of that name, or the images differ
            in size and `spec` gives no size to resize them to.
        DataMissing: The data set is not on disk and cannot be downloaded.
        DataError: The data set is damaged or unusable.
    """
    if isinstance(spec, str):
        spec = DataSpec.parse(spec)
    if spec.kind == "folder":
        return _of_pictures(decoded_pictures(FolderSource(spec, report), root, report, progress))
    if spec.urls:
        files = fetched(spec, root, report, progress)
        return replace(load_dataset(files, root, report, progress=progress), name=spec.source)
    if spec.kind == "parquet":
        return _of_pictures(decoded_pictures(ParquetSource(spec, report), root, report, progress))
    if spec.kind == "idx":
        source = idx_source(spec, progress)
    elif spec.kind == "npy":
        source = npy_source(spec, progress)
    else:
        source = public_source(spec, root or data_dir(), report, fetch=fetch)
    if source.as_wanted:
        return _of_arrays(source)
    if source.converted_bytes <= decoding.IN_MEMORY:
        return _of_pictures(pictures_in_memory(source, report, progress))
    return _of_pictures(decoded_pictures(source, root, report, progress))


def _of_arrays(source: ArraySource) -> Dataset:
    """The images of arrays that need no conversion."""
    views = source.views()
    whole = sum(len(rows) * view[0].nbytes for rows, view in zip(source.rows, views, strict=True))
    train, validation, test = (
        _split(view, rows, labels, groups, whole)
        for view, rows, labels, groups in zip(
            views, source.rows, source.labels, source.groups or (None,) * 3, strict=True
        )
    )
    return Dataset(source.spec.source, train, validation, test, source.class_names, source.sha256)


def _of_pictures(pictures: Pictures) -> Dataset:
    """The images of a source that had to be decoded or converted."""
    images, contents = pictures.images, pictures.contents
    for name, rows in zip(("train", "validation", "test"), contents.splits, strict=True):
        if not len(rows):
            raise DataError(
                f"{pictures.spec.origin}: none of its {len(images)} images is in the {name} "
                "split, wanted at least one"
            )
    groups = contents.groups
    train, validation, test = (
        _split(
            images,
            rows,
            contents.labels[rows],
            None if groups is None else groups[rows],
            images.nbytes,
        )
        for rows in contents.splits
    )
    return Dataset(
        pictures.spec.source,
        train,
        validation,
        test,
        contents.class_names,
        contents.sha256,
        pictures.skipped,
    )


def _split(
    images: NDArray[np.uint8],
    rows: NDArray[np.int64],
    labels: NDArray[np.int64],
    groups: NDArray[np.int64] | None,
    whole: int,
) -> Split:
    """A split of the rows of an array; in memory if all splits together, `whole` bytes, fit."""
    chosen = Rows(images, rows)
    return Split(chosen[:] if whole <= decoding.IN_MEMORY else chosen, labels, groups)
