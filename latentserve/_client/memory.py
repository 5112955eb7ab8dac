"""The memory of the machine, and results that cannot fit into it."""

import functools
import os
from pathlib import Path

# Limits of a container, of cgroup v2 and v1.
_LIMITS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")
_UNITS = ("bytes", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB", "ZiB", "YiB")


@functools.cache
def total_bytes() -> int | None:
    """Returns the memory of the machine or container in bytes; None if the system has no answer."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return None
    for path in _LIMITS:
        try:
            text = Path(path).read_text(encoding="ascii").strip()
        except (OSError, ValueError):
            continue
        if text.isdecimal():
            total = min(total, int(text))
    return total


def check_fits(size: int, what: str, rows: int, stream: str) -> None:
    """Checks that the result of a call can fit into memory, before it fills it.

    The limit is half of the memory: while the replies are joined, there are two copies of them.

    Args:
        size: Size of the result in bytes.
        what: Name of the parameter that the rows come from, for the error.
        rows: Number of rows of the call.
        stream: Method that streams such results, for the error; empty if there is none.

    Raises:
        ValueError: The result is too large.
    """
    total = total_bytes()
    if total is None or 2 * size <= total:
        return
    instead = f", or {stream}, whose results come chunk by chunk" if stream else ""
    raise ValueError(
        f"{what}: got {rows} rows, whose result takes {in_words(size)} of memory where there are "
        f"{in_words(total)}; wanted fewer{instead}"
    )


def in_words(size: int) -> str:
    """Returns a number of bytes with a unit, such as `3.1 PiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{value:.1f} {_UNITS[unit]}" if unit else f"{size} bytes"
