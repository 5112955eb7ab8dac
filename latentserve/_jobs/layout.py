"""The layout of a job: which rows have which size, and which rows go into which shard.

The number of a row is its place in the source, whatever its shard. A shard has rows of one size,
in the order of their numbers. The layout depends on the source, the model and the options alone,
so that a resumed job has the shards of one that was not interrupted.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._jobs import sizes
from latentserve._jobs.sizes import Size
from latentserve._jobs.writers import Column

#: Numbers of rows, ascending: a range, or int64 [N].
Numbers = range | NDArray[np.int64]

# Minimum digits of a shard's number in the names of its files.
_DIGITS = 5


@dataclass(frozen=True)
class Group:
    """The rows of a job whose images have one size.

    Attributes:
        size: Height and width of the images.
        rows: Numbers of the rows.
        columns: Arrays that the job writes for these rows.
        part: Index of the part of the source that has the rows.
    """

    size: Size
    rows: Numbers
    columns: tuple[Column, ...]
    part: int = 0


@dataclass(frozen=True)
class PlannedShard:
    """Rows that go into one shard.

    Attributes:
        number: Number of the shard in the job, from 0.
        label: Label in the names of its files: its number and, in a job of several sizes, its size.
        group: Group that has the rows.
        start: Index of the first row in the group.
        stop: Index of the row after the last one in the group.
    """

    number: int
    label: str
    group: Group
    start: int
    stop: int

    @property
    def rows(self) -> Numbers:
        """Numbers of the rows."""
        return self.group.rows[self.start : self.stop]


def in_order(groups: Sequence[Group]) -> tuple[Group, ...]:
    """Sorts groups by size, which is the order of their shards."""
    return tuple(sorted(groups, key=lambda group: group.size))


def shards(groups: Sequence[Group], shard_rows: int) -> Iterator[PlannedShard]:
    """Yields the shards of a job.

    Args:
        groups: The rows of each size.
        shard_rows: Rows per shard; the last shard of each size may have fewer.
    """
    counts = [-(-len(group.rows) // shard_rows) for group in groups]
    width = max(_DIGITS, len(str(sum(counts) - 1)))
    number = 0
    for group, count in zip(groups, counts, strict=True):
        for index in range(count):
            label = f"{number:0{width}}"
            if len(groups) > 1:
                label += f"-{sizes.label(group.size)}"
            start = index * shard_rows
            stop = min(start + shard_rows, len(group.rows))
            yield PlannedShard(number, label, group, start, stop)
            number += 1


def description(groups: Sequence[Group]) -> dict[str, Any]:
    """Describes the arrays of a job, and its sizes if there are several, for the manifest."""
    arrays: dict[str, Any] = {}
    for column in groups[0].columns:
        arrays[column.name] = {"dtype": column.dtype, "row_shape": list(column.shape)}
    if len(groups) == 1:
        return {"arrays": arrays}
    for index, array in enumerate(arrays.values()):
        del array["row_shape"]
        array["row_shapes"] = [list(group.columns[index].shape) for group in groups]
    described = [
        {"height": group.size[0], "width": group.size[1], "rows": len(group.rows)}
        for group in groups
    ]
    return {"arrays": arrays, "sizes": described}


def runs(rows: Numbers) -> list[tuple[int, int]]:
    """Returns start and stop index of each run of consecutive numbers."""
    if isinstance(rows, range):
        return [(0, len(rows))]
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    bounds = [0, *cuts.tolist(), len(rows)]
    return list(pairwise(bounds))
