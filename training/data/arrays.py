"""Images that are decoded already: rows of arrays, used as they are or converted."""

import functools
import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.pictures import resize
from latentserve._walk import Problem
from training.data.pictures import Contents, Decoded, Item
from training.data.spec import DataSpec

Array = NDArray[np.uint8]


@dataclass(frozen=True)
class ArraySource:
    """The rows of the arrays of a data set, as `training.data.pictures.PictureSource`.

    Attributes:
        spec: The specification.
        parts: Array of the training, the validation and the test images, uint8 [M, C, H, W]; the
            same one several times, or several.
        rows: Indices of the images of each split in its array, int64 [n].
        labels: Classes of these images, int64 [n]; all 0 without labels.
        class_names: Name of each class; empty without labels.
        sha256: SHA-256 of each source file, by name.
        groups: Groups of these images, int64 [n]; None if the source has none.
        problems: None: arrays are whole.
        at_a_time: As in `PictureSource`: arrays are on disk or in memory.
    """

    spec: DataSpec
    parts: tuple[Array, Array, Array]
    rows: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    labels: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    groups: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]] | None = None
    problems: Sequence[Problem] = ()
    at_a_time: int | None = None

    @property
    def as_wanted(self) -> bool:
        """Whether the images have the size and channels of the specification."""
        spec, shapes = self.spec, {part.shape[1:] for part in self.parts}
        return all(
            spec.image_size in (None, tuple(size)) and (spec.channels or channels) >= channels
            for channels, *size in shapes
        )

    @property
    def converted_bytes(self) -> int:
        """Bytes of the images at the size and channels of the specification."""
        channels, *size = self.parts[0].shape[1:]
        height, width = self.spec.image_size or size
        # A background of colour makes grey images RGB.
        return len(self) * (self.spec.channels or max(3, channels)) * height * width

    def views(self) -> tuple[Array, Array, Array]:
        """The arrays with the channels of the specification: grey is repeated, not copied."""
        channels = self.spec.channels or self.parts[0].shape[1]
        train, validation, test = (
            np.broadcast_to(part, (len(part), channels, *part.shape[2:])) for part in self.parts
        )
        return train, validation, test

    def __len__(self) -> int:
        return sum(map(len, self.rows))

    def state(self) -> str:
        """A hash of the checksums of the files."""
        return hashlib.sha256(json.dumps(self.sha256).encode()).hexdigest()

    def items(self) -> Iterator[Item]:
        """The training, the validation and the test images."""
        for part, rows in zip(self.parts, self.rows, strict=True):
            for row in rows:
                load = functools.partial(self._load, part, int(row))
                yield Item(f"row {row}", part[0].nbytes, load)

    def contents(self, usable: Sequence[int], digest: str) -> Contents:  # noqa: ARG002
        """Splits one after the other."""
        ends = np.cumsum([len(rows) for rows in self.rows])
        train, validation, test = (
            np.arange(end - len(rows), end) for rows, end in zip(self.rows, ends, strict=True)
        )
        labels = np.concatenate(self.labels)
        groups = None if self.groups is None else np.concatenate(self.groups)
        splits = train, validation, test
        return Contents(labels, splits, self.class_names, self.sha256, groups)

    def _load(self, part: Array, row: int) -> Decoded:
        spec = self.spec
        return resize(
            np.ascontiguousarray(part[row]),
            spec.image_size,
            spec.channels,
            spec.fit,
            spec.background_colour,
        ), ""
