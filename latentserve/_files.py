"""Atomic, durable writes of files, and the texts of their errors."""

import os
import secrets
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash it has either its old content or all of `data`.

    The bytes are written to a temporary file in the same folder, fsynced and renamed to
    `path`; the folder is fsynced last, so that the rename survives a power cut.

    Raises:
        OSError: The folder does not exist or cannot be written to.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")
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


def fsync_folder(folder: Path) -> None:
    """Fsyncs a folder, so that created and renamed files in it survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def reason(error: OSError) -> str:
    """Returns the text of an error, without its number and file name."""
    return error.strerror or str(error) or type(error).__name__
