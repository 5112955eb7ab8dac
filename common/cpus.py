"""The number of CPUs that this process may use.

onnxruntime and torch count the machine's cores and ignore a container's CPU quota.
"""

import math
import os
from pathlib import Path

from common.cgroups import MOUNT, OWN, group_folders


def usable_cpus(mount: Path = MOUNT, own: Path = OWN) -> int:
    """The number of CPUs that affinity and cgroup quotas allow, at least 1.

    Args:
        mount: Mount point of the cgroup file systems; in a container it shows the
            container's limits.
        own: The file that names this process's cgroups.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for folder in group_folders("cpu", mount, own):
        quota = _quota(folder)
        if quota is not None:
            cpus = min(cpus, quota)
    return max(1, cpus)


def _quota(folder: Path) -> int | None:
    """CPUs that a cgroup may use, rounded up; None without a quota."""
    try:
        if (folder / "cpu.max").exists():  # cgroup v2
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        # No quota is "max" in v2, -1 in v1.
        return math.ceil(int(quota) / int(period)) if quota not in ("max", "-1") else None
    except (OSError, ValueError, ZeroDivisionError):
        return None  # a root cgroup has no quota
