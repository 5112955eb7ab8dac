"""Sources of pictures that have to be decoded, and decoding in parallel."""

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from common.cpus import usable_cpus
from common.pictures import PictureError, decode
from latentserve._files import reason
from latentserve._walk import Problem
from training.data.spec import DataSpec

#: Pixels of a picture, uint8 [C, H, W], and the SHA-256 of its file in hexadecimal.
Decoded = tuple[NDArray[np.uint8], str]

# A task of the pool has up to so many pictures, and bytes of their files: the overhead of a task
# is that of decoding a small picture.
_TASK_PICTURES = 64
_TASK_BYTES = 1 << 20


@dataclass(frozen=True)
class Item:
    """One picture of a source.

    Attributes:
        name: Its name within the source, for messages.
        size: Bytes of its file, about.
        load: Reads and decodes it; raises OSError or PictureError.
    """

    name: str
    size: int
    load: Callable[[], Decoded]


@dataclass(frozen=True)
class Contents:
    """What a source says about its pictures, once it is known which of them can be used.

    Attributes:
        labels: Class of each usable picture, int64 [N]; all 0 without labels.
        splits: Indices of the training, validation and test pictures among the usable ones,
            int64 [n] each.
        class_names: Name of each class; empty without labels.
        sha256: SHA-256 of each source file, by name, as in `Dataset`.
        groups: Group of each usable picture, int64 [N]; None if the source has none.
    """

    labels: NDArray[np.int64]
    splits: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    class_names: tuple[str, ...]
    sha256: dict[str, str]
    groups: NDArray[np.int64] | None = None


class PictureSource(Protocol):
    """Pictures that are decoded once and then kept."""

    @property
    def spec(self) -> DataSpec:
        """The specification that the source was found by."""
        ...

    @property
    def problems(self) -> Sequence[Problem]:
        """Files that are known to be unusable before any is decoded."""
        ...

    @property
    def at_a_time(self) -> int | None:
        """Number of pictures to read at a time, where that waits for a network; else None."""
        ...

    def __len__(self) -> int:
        """Number of pictures, usable or not."""
        ...

    def state(self) -> str:
        """A hash of the files' paths, sizes, and times or stamps; changes when a file does."""
        ...

    def items(self) -> Iterator[Item]:
        """The pictures in their order."""
        ...

    def contents(self, usable: Sequence[int], digest: str) -> Contents:
        """Describes the pictures that can be used.

        Args:
            usable: Their indices, ascending.
            digest: SHA-256 over the name and the SHA-256 of each.

        Raises:
            DataError: They cannot be split, or have no names that can be used.
        """
        ...


def decode_file(spec: DataSpec, read: Callable[[], bytes]) -> Decoded:
    """Reads and decodes one picture file as a specification says.

    Raises:
        OSError: It cannot be read.
        PictureError: It is damaged.
    """
    raw = read()
    pixels = decode(raw, spec.image_size, spec.channels, spec.fit, spec.background_colour)
    return pixels, hashlib.sha256(raw).hexdigest()


def decoded(
    items: Iterable[Item], at_a_time: int | None = None
) -> Iterator[tuple[Item, Decoded | Problem]]:
    """Decodes pictures in parallel; yields them in order.

    Only a few tasks are in flight at a time, so that memory does not fill with pictures that
    are decoded faster than they are used.

    Args:
        items: The pictures.
        at_a_time: Number of pictures to read at a time; None for a thread for each CPU, each of
            which takes several small pictures.
    """
    threads = at_a_time or usable_cpus()
    waiting: deque[tuple[list[Item], Future[list[Decoded | Problem]]]] = deque()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        for task in _tasks(items, 1 if at_a_time else _TASK_PICTURES):
            waiting.append((task, pool.submit(_load_all, task)))
            if len(waiting) > 2 * threads:
                done, results = waiting.popleft()
                yield from zip(done, results.result(), strict=True)
        while waiting:
            done, results = waiting.popleft()
            yield from zip(done, results.result(), strict=True)
    finally:
        pool.shutdown(cancel_futures=True)


def _tasks(items: Iterable[Item], most: int) -> Iterator[list[Item]]:
    task: list[Item] = []
    size = 0
    for item in items:
        task.append(item)
        size += item.size
        if len(task) == most or size >= _TASK_BYTES:
            yield task
            task, size = [], 0
    if task:
        yield task


def _load_all(items: Sequence[Item]) -> list[Decoded | Problem]:
    return [_load(item) for item in items]


def _load(item: Item) -> Decoded | Problem:
    try:
        return item.load()
    except OSError as error:
        return Problem(item.name, reason(error))
    except PictureError as error:
        return Problem(item.name, str(error))
