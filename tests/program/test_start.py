"""CPU time of a start until health is SERVING, golden rows included."""

import statistics

from benchmarks.processes import cpu_seconds
from tests.support.processes import Server

MOST_SECONDS = 1.5


def test_a_start_takes_at_most_1_5_seconds_of_cpu_time(models, tmp_path):
    used = []
    for attempt in range(3):
        with Server(models, tmp_path / f"log{attempt}") as server:
            server.wait_until_serving()
            used.append(cpu_seconds(server.process.pid))
    print(f"{used} s")
    assert statistics.median(used) <= MOST_SECONDS, used
