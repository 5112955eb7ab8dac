"""Data sets as arrays, with their splits.

The split is fixed: of the official training file the last `VALIDATION_IMAGES` are
the validation set and the rest is trained on; the official test file is the test
set and is only ever measured on.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from training.errors import ConfigError, DataError
from training.idx import parse_idx, unpack
from training.sources import SOURCES, Report, ensure_files

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
    """Images with their classes.

    Attributes:
        images: uint8 [N, C, H, W], 0 to 255.
        labels: int64 [N], indices into `Dataset.class_names`.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Dataset:
    """A data set, split.

    Attributes:
        name: What it was asked for by, for example `mnist`.
        train: Trained on.
        validation: Watched during training.
        test: Measured on once training is over.
        class_names: Name of each class.
        sha256: SHA-256 of each source file's uncompressed content, by file name.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    class_names: tuple[str, ...]
    sha256: dict[str, str]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """C, H and W."""
        _, channels, height, width = self.train.images.shape
        return channels, height, width


def load_dataset(
    name: str,
    root: Path | None = None,
    report: Report = lambda _line: None,
    *,
    fetch: bool = True,
) -> Dataset:
    """Loads a data set, fetching it first where it is not cached.

    Args:
        name: `mnist` or `fashion-mnist`.
        root: The cache folder; `training.sources.data_dir()` by default.
        report: Called with one line for each source that is tried.
        fetch: Whether a network may be used.

    Raises:
        ConfigError: There is no data set of that name.
        DataMissing: It cannot be had.
        DataError: It is damaged.
    """
    source = SOURCES.get(name)
    if source is None:
        raise ConfigError(f"data set: got {name!r}, wanted one of {', '.join(sorted(SOURCES))}")
    paths = ensure_files(source, root, report, fetch=fetch)
    contents = {}
    for file, path in zip(source.files, paths, strict=True):
        contents[file.name] = unpack(path.read_bytes(), str(path))
    images, labels, test_images, test_labels = (
        parse_idx(raw, file_name) for file_name, raw in contents.items()
    )
    if len(images) <= VALIDATION_IMAGES:
        raise DataError(f"{name}: {len(images)} training images, wanted over {VALIDATION_IMAGES}")
    whole = _split(name, images, labels)
    return Dataset(
        name=name,
        train=Split(whole.images[:-VALIDATION_IMAGES], whole.labels[:-VALIDATION_IMAGES]),
        validation=Split(whole.images[-VALIDATION_IMAGES:], whole.labels[-VALIDATION_IMAGES:]),
        test=_split(name, test_images, test_labels),
        class_names=_CLASS_NAMES[name],
        sha256={file_name: hashlib.sha256(raw).hexdigest() for file_name, raw in contents.items()},
    )


def binarize(images: NDArray[np.uint8], seed: int) -> NDArray[np.float32]:
    """Draws one bit per pixel, 1 with the probability that the grey value states.

    The protocol of the published MNIST likelihoods (Salakhutdinov and Murray 2008;
    Burda et al. 2016), with a draw that is the same on every machine: Philox bits
    under the key `seed`.

    Args:
        images: uint8, any shape.
        seed: Key of the draw.

    Returns:
        float32 of the same shape, each element 0 or 1.
    """
    # 32 random bits per pixel against value / 255: 0 never, 255 always sets the bit.
    words = np.random.Philox(key=seed).random_raw((images.size + 1) // 2)
    bits = np.frombuffer(words.astype("<u8").tobytes(), "<u4", count=images.size)
    threshold = (images.reshape(-1).astype(np.uint64) << np.uint64(32)) // np.uint64(255)
    return (bits < threshold).astype(np.float32).reshape(images.shape)


def _split(name: str, images: NDArray[np.uint8], labels: NDArray[np.uint8]) -> Split:
    if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
        raise DataError(
            f"{name}: images {list(images.shape)} and labels {list(labels.shape)} do not "
            "belong together"
        )
    return Split(images[:, None], labels.astype(np.int64))
