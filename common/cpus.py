"""How many CPUs this process may really use.

onnxruntime and torch count cores, blind to a container's quota. Shared by the server
and the trainer; the client has no use for it.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """Returns the CPUs allowed by affinity and by cgroup v2 quotas, at least 1.

    Args:
        mount: Where the cgroup file system is mounted. In a container it shows
            the container's own limits.
        own: Names this process's cgroup, whose parents have quotas too.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(mount, own):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                cpus = min(cpus, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):
            continue  # the root has no quota; cgroup v1 has other files
    return max(1, cpus)


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = mount / path.strip("/")
    while group.is_relative_to(mount):
        yield group
        group = group.parent
