"""Prints the addresses of the server's ports on stdout."""

import logging
import os

_log = logging.getLogger(__name__)


def announce(*lines: str) -> None:
    """Prints lines to stdout, or logs them if that fails (disk full, pipe closed)."""
    text = "".join(f"latentserve: {line}\n" for line in lines)
    try:
        # Not `print`: text that stays in its buffer would make Python fail again at exit.
        os.write(1, text.encode())
    except OSError as error:
        _log.warning("stdout: %s: %s", error.strerror, "; ".join(lines))
