"""What a server takes until it serves."""

import os
import statistics
from pathlib import Path

import pytest

from tests.processes import Server

_ROUNDS = 3
_MOST_SECONDS = 1.5


def cpu_seconds(pid: int) -> float:
    """User and system time of a process, all its threads together (proc(5))."""
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
@pytest.mark.usefixtures("each_transport")
def test_it_serves_after_little_cpu_time(models, tmp_path):
    """The dense bundle, its golden rows included. CPU time, since other tests run beside."""
    taken = []
    for number in range(_ROUNDS):
        with Server(models, tmp_path / f"log-{number}") as server:
            server.wait_until_serving()
            taken.append(cpu_seconds(server.process.pid))
    assert statistics.median(taken) < _MOST_SECONDS, taken
