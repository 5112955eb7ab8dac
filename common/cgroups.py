"""Control groups (cgroups) of this process, whose limits a container sets.

Other libraries mostly count the whole machine: its cores, its memory.
"""

from collections.abc import Iterator
from pathlib import Path

#: Mount point of the cgroup file systems.
MOUNT = Path("/sys/fs/cgroup")
#: The file that names this process's cgroups.
OWN = Path("/proc/self/cgroup")


def group_folders(controller: str, mount: Path = MOUNT, own: Path = OWN) -> Iterator[Path]:
    """Folders of this process's cgroups and of their parents, whose limits apply as well.

    They are those of cgroup v2 and, where a controller is mounted as cgroup v1, of that. A
    folder need not exist: in a container, the path may be that on the host, and the mount point
    itself has the container's limits.

    Args:
        controller: Name of the controller, `cpu` or `memory`.
        mount: Mount point of the cgroup file systems.
        own: The file that names this process's cgroups.
    """
    try:
        lines = own.read_text(errors="replace").splitlines()
    except OSError:
        lines = ["0::/"]
    for line in lines:
        # Hierarchy number, controllers (none for v2), path.
        fields = line.split(":", 2)
        if len(fields) != 3:
            continue
        _, names, path = fields
        if not names:
            yield from _upwards(mount, path)
        elif controller in names.split(","):
            # Mostly a link, such as cpu to cpu,cpuacct, but not everywhere.
            for root in dict.fromkeys((mount / names, mount / controller)):
                yield from _upwards(root, path)


def _upwards(root: Path, path: str) -> Iterator[Path]:
    folder = root / path.strip("/")
    while folder.is_relative_to(root):
        yield folder
        folder = folder.parent
