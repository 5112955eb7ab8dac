"""Durable writes: files and folders that survive a power cut."""

import os
from pathlib import Path


def write_file(path: Path, content: bytes) -> None:
    """Writes a file and fsyncs it."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Fsyncs a folder, so that renames in it are durable."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
