"""The pin of a model: a file `current` in its folder with the version that is its latest.

Without it, the highest version is the latest. The pin is how a rollback survives restarts, and
holds for all servers of the folder.
"""

import re
import secrets
from pathlib import Path

from bundle.durable import fsync_folder, write_file
from bundle.errors import BundleError

PIN = "current"

_CONTENT = re.compile(r"[1-9][0-9]{0,17}\n?")


def read_pin(model: Path) -> int | None:
    """Returns the version that a model is pinned to, or None if there is no pin.

    Args:
        model: `models/<name>`.

    Raises:
        BundleError: The file cannot be read, or holds no version.
    """
    path = model / PIN
    try:
        content = path.read_bytes()[:100].decode("utf-8", "replace")
    except (FileNotFoundError, IsADirectoryError):
        return None  # a folder of that name is ignored, as others that are no versions
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
    return parse_pin(content, path)


def parse_pin(content: str, where: object) -> int:
    """Returns the version that the content of a pin names.

    Args:
        content: Content of the file.
        where: Its path or URL, for messages.

    Raises:
        BundleError: The content is no version.
    """
    if not _CONTENT.fullmatch(content):
        raise BundleError(f"{where}: got {content!r}, wanted a version number")
    return int(content)


def write_pin(model: Path, version: int | None) -> None:
    """Pins a model to a version, atomically and durably.

    Args:
        model: `models/<name>`, which exists.
        version: The version; None to remove the pin.

    Raises:
        BundleError: The file cannot be written or removed.
    """
    path = model / PIN
    temporary = model / f".{PIN}-{secrets.token_hex(6)}"
    try:
        if version is None:
            path.unlink(missing_ok=True)
        else:
            try:
                write_file(temporary, b"%d\n" % version)
                temporary.replace(path)
            except BaseException:
                temporary.unlink(missing_ok=True)
                raise
        fsync_folder(model)
    except OSError as error:
        raise BundleError(f"{path}: {error.strerror}") from error
