"""The number of CPUs that this process may use.

onnxruntime and torch count the machine's cores and ignore a container's CPU quota.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cpus(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """The number of CPUs that affinity and cgroup v2 quotas allow, at least 1.

    Args:
        mount: Mount point of the cgroup file system; in a container it shows the
            container's limits.
        own: The file that holds the path of this process's cgroup.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for group in _groups(mount, own):
        try:
            quota, period = (group / "cpu.max").read_text().split()
            if quota != "max":
                cpus = min(cpus, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError):
            continue  # the root cgroup has no quota, and cgroup v1 has other files
    return max(1, cpus)


def _groups(mount: Path, own: Path) -> Iterator[Path]:
    """Folders of this process's cgroup and of its parents, whose quotas apply to it as well."""
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    path = next((line[3:] for line in lines if line.startswith("0::")), "/")
    group = mount / path.strip("/")
    while group.is_relative_to(mount):
        yield group
        group = group.parent
