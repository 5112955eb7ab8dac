"""Limits of CPUs and memory, by the files of cgroup v1 and v2 as containers show them."""

import resource
from pathlib import Path

import pytest

from common import memory
from common.cgroups import group_folders
from common.cpus import usable_cpus
from common.memory import usable_memory

# Lines of /proc/self/cgroup.
V2 = "0::/\n"
DOCKER_V1 = "11:memory:/docker/4f\n5:cpu,cpuacct:/docker/4f\n1:name=systemd:/\n0::/docker/4f\n"
HOST_V1 = "4:memory:/service/worker\n3:cpu:/service\n"
NONE_V1 = "9223372036854771712\n"
MIB = 2**20


def lay_out(folder: Path, own: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Writes the files of a cgroup file system; returns its mount point and the process's file."""
    mount = folder / "cgroup"
    for name, content in files.items():
        path = mount / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    (folder / "own").write_text(own)
    return mount, folder / "own"


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        (V2, {"cpu.max": "100000 100000\n"}, 1),
        (DOCKER_V1, {"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
        (
            DOCKER_V1,
            {
                "cpu,cpuacct/cpu.cfs_quota_us": "100000\n",
                "cpu,cpuacct/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (
            HOST_V1,
            {
                "cpu/cpu.cfs_quota_us": "-1\n",
                "cpu/cpu.cfs_period_us": "100000\n",
                "cpu/service/cpu.cfs_quota_us": "90000\n",
                "cpu/service/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        (DOCKER_V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (HOST_V1, {"cpu.max": "100000 100000\n"}, None),  # not this process's controller
        ("nonsense\n\n0\n", {"cpu.max": "100000 100000\n"}, None),
    ],
)
def test_quotas_of_both_versions_bound_the_cpus(
    tmp_path: Path, own: str, files: dict[str, str], wanted: int | None
) -> None:
    free = usable_cpus(tmp_path / "none", tmp_path / "none")
    assert usable_cpus(*lay_out(tmp_path, own, files)) == (wanted or free)


@pytest.mark.parametrize(
    ("own", "files", "wanted"),
    [
        (V2, {"memory.max": f"{256 * MIB}\n"}, 256 * MIB),
        (V2, {"memory.max": "max\n"}, None),
        (
            "0::/pod/one\n",
            {"pod/one/memory.max": "max\n", "pod/memory.max": f"{64 * MIB}\n"},
            64 * MIB,
        ),
        (DOCKER_V1, {"memory/memory.limit_in_bytes": f"{256 * MIB}\n"}, 256 * MIB),
        (DOCKER_V1, {"memory/memory.limit_in_bytes": NONE_V1}, None),
        (
            HOST_V1,
            {
                "memory/memory.limit_in_bytes": NONE_V1,
                "memory/service/memory.limit_in_bytes": f"{128 * MIB}\n",
                "memory/service/worker/memory.limit_in_bytes": f"{512 * MIB}\n",
            },
            128 * MIB,
        ),
    ],
)
def test_limits_of_both_versions_bound_the_memory(
    tmp_path: Path, own: str, files: dict[str, str], wanted: int | None
) -> None:
    free = usable_memory(tmp_path / "none", tmp_path / "none")
    assert free > 512 * MIB
    assert usable_memory(*lay_out(tmp_path, own, files)) == (wanted or free)


def test_ulimit_bounds_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory.resource, "getrlimit", lambda _: (300 * MIB, resource.RLIM_INFINITY))
    assert usable_memory(tmp_path, tmp_path / "none") == 300 * MIB


def test_a_path_out_of_the_namespace_stays_at_the_mount_point(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/../../elsewhere\n")
    folders = list(group_folders("cpu", tmp_path / "cgroup", own))
    assert folders[-1] == tmp_path / "cgroup"
