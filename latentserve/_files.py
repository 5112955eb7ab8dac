"""Files that are whole or not there at all."""

import os
import secrets
from pathlib import Path


def atomic_write(path: Path, data: bytes) -> None:
    """Writes a file so that a reader or a crash never sees half of it.

    The bytes go to a temporary file beside it, are fsynced, and are renamed onto
    `path`; the folder is fsynced last, so that the rename survives a power cut.

    Raises:
        OSError: The folder is not there or cannot be written.
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
    """Makes the names in a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
