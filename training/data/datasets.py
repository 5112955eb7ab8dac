"""Data sets as arrays, with their splits.

The splits are fixed. MNIST and Fashion-MNIST: the last `VALIDATION_IMAGES` images of the
official training file are the validation split and the rest is the training split; the
official test file is the test split, which no choice in training depends on. Other IDX
files: without test files, every tenth image goes to the test split. Of the remaining images,
the last tenth (at most `VALIDATION_IMAGES`) is the validation split, the rest the training split.
Folders: see `training.data.folder`.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.pictures import resize
from training.data.download import Report, read_files
from training.data.folder import MIN_IMAGES, read_folder
from training.data.idx import parse_idx, read_unpacked
from training.data.memory import refuse_too_many
from training.data.rows import Images, interleave_classes
from training.data.sources import SOURCES
from training.data.spec import DataSpec
from training.data.targets import binarize
from training.errors import DataError

__all__ = ["Dataset", "Split", "binarize", "interleave_classes", "load_dataset"]

VALIDATION_IMAGES = 5_000

_CLASS_NAMES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat",
        "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Images with their labels.

    Attributes:
        images: uint8 [N, C, H, W], to be read in chunks: they may be on disk.
        labels: int64 [N], indices into `Dataset.class_names`; all 0 if the data has no
            labels.
    """

    images: Images
    labels: NDArray[np.int64]


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
    fetch: bool = True,
) -> Dataset:
    """Loads a data set; a public one that is not cached is downloaded first.

    Args:
        spec: The data set, or a string for `DataSpec.parse`, such as `mnist`.
        root: The cache folder; `training.data.download.data_dir()` by default.
        report: Called with one line per download, and for the first files that are
            skipped.
        fetch: Whether the network may be used.

    Raises:
        ConfigError: There is no data set of that name, or the images of a folder differ
            in size and `spec` gives no size to resize them to.
        DataMissing: The data set is not on disk and cannot be downloaded.
        DataError: The data set is damaged or unusable.
    """
    if isinstance(spec, str):
        spec = DataSpec.parse(spec)
    if spec.kind == "folder":
        return _from_folder(spec, report)
    if spec.kind == "idx":
        return _from_idx_files(spec)
    return _from_source(spec, root, report, fetch)


def _from_folder(spec: DataSpec, report: Report) -> Dataset:
    found = read_folder(spec, report)
    train, validation, test = (Split(images, labels) for images, labels in found.splits)
    return Dataset(
        name=spec.source,
        train=train,
        validation=validation,
        test=test,
        class_names=found.class_names,
        sha256={spec.path.name or str(spec.path): found.sha256},
        skipped=found.skipped,
    )


def _from_source(spec: DataSpec, root: Path | None, report: Report, fetch: bool) -> Dataset:
    source = SOURCES[spec.source]
    contents = [content for _, content in read_files(source, root, report, fetch=fetch)]
    images, labels, test_images, test_labels = (
        parse_idx(content.raw, file.name)
        for file, content in zip(source.files, contents, strict=True)
    )
    if len(images) <= VALIDATION_IMAGES:
        raise DataError(
            f"{source.name}: {len(images)} training images, wanted over {VALIDATION_IMAGES}"
        )
    train, validation = _cut(_split(spec, images, labels), VALIDATION_IMAGES)
    return Dataset(
        name=spec.source,
        train=train,
        validation=validation,
        test=_split(spec, test_images, test_labels),
        class_names=_CLASS_NAMES[spec.source],
        sha256={
            file.name: content.sha256 for file, content in zip(source.files, contents, strict=True)
        },
    )


def _from_idx_files(spec: DataSpec) -> Dataset:
    files = [file for file in spec.files if file is not None]
    contents = {file: read_unpacked(file) for file in files}
    arrays = [None if file is None else parse_idx(contents[file], str(file)) for file in spec.files]
    images, labels, test_images, test_labels = (*arrays, None, None, None)[:4]
    assert images is not None
    if len(images) < MIN_IMAGES:
        raise DataError(f"{files[0]}: {len(images)} images, wanted {MIN_IMAGES} or more")
    whole = _split(spec, images, labels)
    if test_images is None:
        # Every tenth image rather than the last tenth, since files are often sorted by class.
        chosen = np.arange(len(images)) % 10 == 9
        test = Split(whole.images[chosen], whole.labels[chosen])
        whole = Split(whole.images[~chosen], whole.labels[~chosen])
    else:
        test = _split(spec, test_images, test_labels)
    if not len(test.images) or test.images.shape[1:] != whole.images.shape[1:]:
        raise DataError(
            f"{spec.source}: test images {list(test.images.shape)}, wanted one or more like the "
            f"training images {list(whole.images.shape)}"
        )
    train, validation = _cut(whole, min(VALIDATION_IMAGES, len(whole.images) // 10))
    classes = 0 if labels is None else 1 + max(whole.labels.max(), test.labels.max())
    return Dataset(
        name=spec.source,
        train=train,
        validation=validation,
        test=test,
        class_names=tuple(str(index) for index in range(classes)),
        sha256={
            key: hashlib.sha256(contents[file]).hexdigest()
            for key, file in zip(_keys(files), files, strict=True)
        },
    )


def _split(spec: DataSpec, images: NDArray[np.uint8], labels: NDArray[np.uint8] | None) -> Split:
    """Makes a split from an array of images, resized as `spec` says, and one of labels.

    Raises:
        DataError: The shapes are wrong, or there are too many images for memory.
    """
    if labels is None:
        labels = np.zeros(len(images), np.uint8)
    if images.ndim != 3 or 0 in images.shape[1:]:
        raise DataError(
            f"{spec.source}: images {list(images.shape)}, wanted [N, H, W], none of them 0"
        )
    if labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{spec.source}: images {list(images.shape)} and labels {list(labels.shape)} do not "
            "belong together"
        )
    size = spec.image_size or images.shape[1:]
    channels = spec.channels or 1
    refuse_too_many(spec.source, len(images), channels * size[0] * size[1])
    if size == images.shape[1:]:
        pixels = images[:, None] if channels == 1 else np.repeat(images[:, None], 3, axis=1)
    else:
        pixels = np.empty((len(images), channels, *size), np.uint8)
        for place, image in enumerate(images):
            pixels[place] = resize(image[None], size, channels, spec.fit, spec.background_colour)
    return Split(pixels, labels.astype(np.int64))


def _cut(whole: Split, last: int) -> tuple[Split, Split]:
    """Cuts a split in two: all but the last `last` images, and the last `last` images."""
    return (
        Split(whole.images[:-last], whole.labels[:-last]),
        Split(whole.images[-last:], whole.labels[-last:]),
    )


def _keys(files: Sequence[Path]) -> list[str]:
    """Names files by the shortest endings of their paths that tell them apart, without `.gz`."""
    plain = [file.with_suffix("") if file.suffix == ".gz" else file for file in files]
    for length in range(1, max(len(path.parts) for path in plain)):
        keys = ["/".join(path.parts[-length:]) for path in plain]
        if len(set(keys)) == len(keys):
            return keys
    return [str(file) for file in files]
