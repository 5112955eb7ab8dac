"""Images that stay on disk: rows of a memory map, read as they are asked for."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Most images of a chunk, and most values in it: 8 MiB as float32. A network's activations, and the
# float64 of a likelihood, take about ten times as much.
_CHUNK_IMAGES = 1_000
_CHUNK_VALUES = 1 << 21


class Rows:
    """Chosen rows of an array that need not fit in memory.

    It has the shape and the indexing of an array along its first axis. What is indexed is
    read and copied; nothing reads all of it at once.

    Args:
        images: uint8 [M, C, H, W], usually a memory map.
        rows: Index in `images` of each row, int64 [N].
    """

    dtype = np.dtype(np.uint8)

    def __init__(self, images: NDArray[np.uint8], rows: NDArray[np.int64]):
        self._images = images
        self._rows = rows

    def and_(self, *others: "Rows") -> "Rows":
        """These rows, and after them other rows of the same array."""
        assert all(np.may_share_memory(self._images, rows._images) for rows in others)
        return Rows(self._images, np.concatenate([rows._rows for rows in (self, *others)]))

    @property
    def shape(self) -> tuple[int, ...]:
        """N, C, H and W."""
        return len(self._rows), *self._images.shape[1:]

    @property
    def nbytes(self) -> int:
        """Bytes that all rows would take in memory."""
        return math.prod(self.shape)

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Reads one image, [C, H, W], or those of a slice or an index array, [n, C, H, W]."""
        return np.ascontiguousarray(self._images[self._rows[index]])

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        for start in range(0, len(self), _CHUNK_IMAGES):
            yield from self[start : start + _CHUNK_IMAGES]

    def __array__(self, *_arguments: Any, **_options: Any) -> NDArray[np.uint8]:
        raise TypeError("these images are on disk: read them in chunks")


#: The images of a split, uint8 [N, C, H, W]: in memory, or read from disk when indexed.
Images = NDArray[np.uint8] | Rows


def concatenated(parts: Sequence[Images]) -> Images:
    """The images of several splits of one data set, one after the other.

    Args:
        parts: All in memory, or all rows of one array.
    """
    on_disk = [part for part in parts if isinstance(part, Rows)]
    if not on_disk:
        return np.concatenate([part[:] for part in parts])
    return on_disk[0].and_(*on_disk[1:])


def chunk_rows(image_shape: Sequence[int]) -> int:
    """Number of images to compute with at a time, so that activations take bounded memory."""
    return max(1, min(_CHUNK_IMAGES, _CHUNK_VALUES // math.prod(image_shape)))


def sample_rows(count: int, most: int, seed: int = 0) -> NDArray[np.int64]:
    """Chooses rows for a statistic: all, or a seeded sample of them where there are many.

    Args:
        count: Number of rows to choose from.
        most: Largest number of rows to choose.
        seed: Philox key.

    Returns:
        Ascending indices, int64 [min(count, most)].
    """
    if count <= most:
        return np.arange(count, dtype=np.int64)
    chosen = np.random.Generator(np.random.Philox(key=seed)).permutation(count)[:most]
    return np.sort(chosen).astype(np.int64)


def interleave_classes(labels: NDArray[np.int64], count: int) -> NDArray[np.intp]:
    """Picks images of all classes in turn, those of a class evenly spaced among its images.

    Neighbours may be alike, since files of a folder are in the order of their names. If there are
    more classes than images to pick, these are evenly spaced, too.

    Args:
        labels: int64 [N].
        count: Number of images to pick.

    Returns:
        Indices of the picked images, intp [min(count, N)].
    """
    # Sorted by class, the members of a class are consecutive: their places count from its first.
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    first, end = (np.searchsorted(ordered, ordered, side) for side in ("left", "right"))
    classes, indices = np.unique(ordered, return_inverse=True)
    each = -(-count // max(1, len(classes)))
    turn = _turns(np.arange(len(labels)) - first, end - first, each)
    later = _turns(indices, np.full_like(indices, len(classes)), count) >= count
    return order[np.lexsort((ordered, later, turn))[:count]]


def _turns(places: NDArray[np.int64], members: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """The turn of each place among so many: `count` of them are evenly spaced, the rest follow."""
    spaced = np.minimum(count, members)
    turns = -(-places * spaced // members)
    first = (turns < spaced) & (turns * members // np.maximum(spaced, 1) == places)
    return np.where(first, turns, count + places)
