"""Rows per second of a dataset job: by itself, and as tasks of Ray.

    python -m benchmarks.jobs --rows 400000

runs the same sample job of the shipped model `mnist` against one server that shares the machine: as
`latentserve batch` does without more options, and with `--ray` on a Ray of one and of two CPUs,
which is started and stopped within the time. More CPUs than there are only stand for more tasks at
once: `--num-cpus 1,2,8`. The overhead of Ray is the time beyond that of the ordinary job. All jobs
have to write the same bytes.
"""

import argparse
import hashlib
import statistics
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.processes import Program
from latentserve import jobs
from latentserve.client import Client


def main() -> int:
    """Entry point; see the module docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.jobs", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=1, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=400_000, help="default: %(default)s")
    parser.add_argument(
        "--shard-rows", type=int, default=jobs.SHARD_ROWS, help="default: %(default)s"
    )
    parser.add_argument(
        "--num-cpus", default="1,2", metavar="N,N", help="CPUs of Ray (default: %(default)s)"
    )
    options = parser.parse_args()
    counts = [int(count) for count in options.num_cpus.split(",")]
    seconds: dict[str, list[float]] = {}
    server = Program(
        [sys.executable, "-m", "latentserve", "serve", "--default-model", "mnist", "--port", "0",
         "--http-port", "off", "--log-level", "warning"],
        "jobs",
    )  # fmt: skip
    try:
        connection = jobs.Connection(server.line("listening on").split()[-1])
        runners: dict[str, jobs.Runner | None] = {"ordinary": None}
        for count in counts:
            runners[f"Ray, {count} CPU(s)"] = jobs.RayRunner(connection, num_cpus=count)
        with connection.client() as client:
            for _ in range(options.rounds):
                digests = set()
                for name, runner in runners.items():
                    took, digest = _job(client, options.rows, options.shard_rows, runner)
                    digests.add(digest)
                    seconds.setdefault(name, []).append(took)
                    print(f"{name}: {took:.1f} s", file=sys.stderr)
                assert len(digests) == 1, "got other bytes from Ray than from the ordinary job"
    finally:
        server.stop()
    print(
        f"{machine()}\n\n| {options.rows:,} rows, {options.shard_rows:,} a shard | seconds | "
        "rows/s | overhead |\n| --- | ---: | ---: | ---: |"
    )
    for name, values in seconds.items():
        took = statistics.median(values)
        pairs = zip(values, seconds["ordinary"], strict=True)
        overhead = statistics.median(one / two - 1 for one, two in pairs)
        print(f"| {name} | {took:.1f} | {options.rows / took:,.0f} | {overhead:.1%} |")
    return 0


def _job(
    client: Client, rows: int, shard_rows: int, runner: jobs.Runner | None
) -> tuple[float, str]:
    """Runs a job; returns its seconds, and the SHA-256 of its list of shards."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        jobs.sample(client, rows, folder, seed=7, shard_rows=shard_rows, runner=runner)
        took = time.perf_counter() - began
        return took, hashlib.sha256((Path(folder) / "cursor.jsonl").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
