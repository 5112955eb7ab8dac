"""What a start costs: CPU time until health says SERVING, the golden rows included."""

import statistics

from benchmarks.processes import cpu_seconds
from tests.support.processes import Server

MOST_SECONDS = 1.5


def test_a_start_takes_little_cpu_time(models, tmp_path):
    used = []
    for attempt in range(3):
        with Server(models, tmp_path / f"log{attempt}") as server:
            server.wait_until_serving()
            used.append(cpu_seconds(server.process.pid))
    print(f"{used} s")
    assert statistics.median(used) <= MOST_SECONDS, used
