"""How many CPUs this process may really use.

onnxruntime counts the host's cores, blind to affinity and to a container's quota.
"""

import math
import os
from pathlib import Path


def usable_cpus(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Returns the CPUs allowed by affinity and by the cgroup v2 quota, at least 1.

    Args:
        cgroup: Where the cgroup file system is mounted. In a container it shows
            the container's own limits.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = (cgroup / "cpu.max").read_text().split()
        if quota != "max":
            cpus = min(cpus, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):
        pass  # no cgroup v2 here
    return max(1, cpus)
