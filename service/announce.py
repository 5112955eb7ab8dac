"""What a server says on stdout: the addresses of its ports."""

import logging
import os

_log = logging.getLogger(__name__)


def announce(*lines: str) -> None:
    """Prints lines to stdout, or logs them if stdout is full, or a pipe that nobody reads."""
    text = "".join(f"latentserve: {line}\n" for line in lines)
    try:
        # Not by `print`: what it cannot write would fail the command at its exit.
        os.write(1, text.encode())
    except OSError as error:
        _log.warning("stdout: %s: %s", error.strerror, "; ".join(lines))
