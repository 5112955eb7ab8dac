"""Checksums of large files: computed in parallel, in bounded memory."""

import hashlib
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common.cpus import usable_cpus

BLOCK = 8 << 20

#: Called with the name of a piece of work, how much of it is done, and all of it.
Progress = Callable[[str, int, int], None]


def silent(_stage: str, _done: int, _total: int) -> None:
    """Progress that nobody is shown."""


def block_sums(path: Path, rows: int, stage: str, progress: Progress = silent) -> list[int]:
    """CRC-32 of each block of `BLOCK` bytes of a file.

    Args:
        path: The file.
        rows: Images in the file, of which progress is shown.
        stage: Name of the work, for the progress.
        progress: Called after each block.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file, ThreadPoolExecutor(usable_cpus()) as pool:
        size = os.fstat(file.fileno()).st_size
        starts = range(0, size, BLOCK)
        results = pool.map(lambda start: zlib.crc32(os.pread(file.fileno(), BLOCK, start)), starts)
        sums = []
        for done, value in enumerate(results, 1):
            sums.append(value)
            progress(stage, rows * done // len(starts), rows)
    return sums


def file_sha256(path: Path, rows: int, progress: Progress = silent) -> str:
    """SHA-256 of a file in hexadecimal.

    Args:
        path: The file.
        rows: Images in the file, of which progress is shown.
        progress: Called after each block.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        size = max(1, os.fstat(file.fileno()).st_size)
        while block := file.read(BLOCK):
            digest.update(block)
            progress(f"checking {path.name}", rows * min(size, file.tell()) // size, rows)
    return digest.hexdigest()
