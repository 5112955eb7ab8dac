"""Atomic, durable writes of files and folders, kinds of files, and the texts of their errors."""

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash it has either its old content or all of `data`.

    The bytes are written to a temporary file in the same folder, fsynced and renamed to
    `path`; the folder is fsynced last, so that the rename survives a power cut.

    Raises:
        OSError: The folder does not exist or cannot be written to.
    """
    temporary = beside(path)
    try:
        with temporary.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def beside(path: Path) -> Path:
    """Returns a new name in the folder of a file that is to be written, then renamed to `path`.

    It does not have the name of `path` in it, which may be as long as names can be.
    """
    return path.with_name(f".{secrets.token_hex(6)}.tmp")


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Makes a folder that appears under its name once it is whole; else nothing is left.

    Args:
        folder: Its path. No such folder exists, or it is empty.

    Yields:
        The folder to write to, beside it.

    Raises:
        OSError: The folder cannot be written.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = folder.with_name(f".{secrets.token_hex(6)}.partial")
    partial.mkdir()
    try:
        yield partial
        os.sync()  # once for all files: a folder of this name has none that a power cut emptied
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    fsync_folder(folder.parent)


def fsync_folder(folder: Path) -> None:
    """Fsyncs a folder, so that created and renamed files in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def is_read_once(path: Path) -> bool:
    """Whether a path is a pipe or a device, whose content is gone once it has been read."""
    return path.exists() and not (path.is_file() or path.is_dir())


def reason(error: OSError) -> str:
    """Returns the text of an error, without its number and file name."""
    return error.strerror or str(error) or type(error).__name__
