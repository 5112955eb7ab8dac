"""The memory that this process may use.

The size of the machine's memory says nothing in a container: its limit is enforced by a kill.
"""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

from common.cgroups import MOUNT, OWN, group_folders

try:
    import resource
except ImportError:  # there is none for Windows
    resource = None  # type: ignore[assignment]


def usable_memory(mount: Path = MOUNT, own: Path = OWN) -> int:
    """Bytes of memory that the machine, cgroups and `ulimit -v` allow.

    Args:
        mount: Mount point of the cgroup file systems; in a container it shows the
            container's limits.
        own: The file that names this process's cgroups.

    Returns:
        The smallest of the limits, `sys.maxsize` where none can be read.
    """
    return min((sys.maxsize, *_machine(), *_cgroups(mount, own)))


def resident_memory() -> int:
    """Bytes of this process in physical memory; 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def _machine() -> Iterator[int]:
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", ()):
        yield os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if resource is not None:
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            yield limit


def _cgroups(mount: Path, own: Path) -> Iterator[int]:
    for folder in group_folders("memory", mount, own):
        for name in ("memory.max", "memory.limit_in_bytes"):  # cgroup v2, v1
            try:
                # No limit is "max" in v2, and in v1 a number beyond any machine's memory.
                yield int((folder / name).read_text())
            except (OSError, ValueError):
                continue
