"""Rows per second of a dataset job: by itself, and as tasks of Ray.

    python -m benchmarks.jobs --rows 400000

runs the same sample job of the shipped model `mnist` against one server that shares the machine: as
`latentserve batch` does without more options, and by a Ray of one and of two CPUs, which is started
and stopped for each job. More CPUs than there are only stand for more tasks at once:
`--num-cpus 1,2,8`. The overhead of Ray is the time beyond that of the ordinary job, without and
with the time in which Ray starts and stops. All jobs have to write the same bytes.
"""

import argparse
import hashlib
import logging
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.processes import Program
from latentserve import jobs
from latentserve.client import Client

_STORE_BYTES = 100 * 2**20


@dataclass(frozen=True)
class Run:
    """One job that was run.

    Attributes:
        job: Seconds of the job.
        around: Seconds in which Ray started before it and stopped after it.
        digest: SHA-256 of its list of shards, which has their checksums.
    """

    job: float
    around: float
    digest: str


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
    counts = [0, *(int(count) for count in options.num_cpus.split(","))]
    runs: dict[int, list[Run]] = {count: [] for count in counts}
    server = Program(
        [sys.executable, "-m", "latentserve", "serve", "--default-model", "mnist", "--port", "0",
         "--http-port", "off", "--log-level", "warning"],
        "jobs",
    )  # fmt: skip
    try:
        connection = jobs.Connection(server.line("listening on").split()[-1])
        for _ in range(options.rounds):
            for count in counts:
                runs[count].append(_run(connection, options.rows, options.shard_rows, count))
                print(f"{_name(count)}: {runs[count][-1]}", file=sys.stderr)
    finally:
        server.stop()
    digests = {run.digest for several in runs.values() for run in several}
    assert len(digests) == 1, "got other bytes from Ray than from the ordinary job"
    print(
        f"{machine()}\n\n| {options.rows:,} rows, {options.shard_rows:,} a shard | seconds | "
        "rows/s | overhead | Ray's start and stop, s | overhead with them |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: |"
    )
    for count, several in runs.items():
        job = statistics.median(run.job for run in several)
        around = statistics.median(run.around for run in several)
        pairs = list(zip(several, runs[0], strict=True))
        without = statistics.median(run.job / plain.job - 1 for run, plain in pairs)
        whole = statistics.median((run.job + run.around) / plain.job - 1 for run, plain in pairs)
        print(
            f"| {_name(count)} | {job:.1f} | {options.rows / job:,.0f} | {without:.1%} | "
            f"{around:.1f} | {whole:.1%} |"
        )
    return 0


def _name(count: int) -> str:
    return f"Ray, {count} CPU{'s' * (count > 1)}" if count else "ordinary"


def _run(connection: jobs.Connection, rows: int, shard_rows: int, count: int) -> Run:
    """Runs the job on a Ray with `count` CPUs; without Ray if that is 0."""
    with tempfile.TemporaryDirectory() as folder, connection.client() as client:
        if not count:
            return Run(_seconds(client, rows, shard_rows, folder, None), 0.0, _digest(folder))
        runner = jobs.RayRunner(connection)  # turns usage statistics off before Ray is imported
        import ray

        began = time.perf_counter()
        ray.init(
            "local",
            num_cpus=count,
            include_dashboard=False,
            object_store_memory=_STORE_BYTES,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            around = time.perf_counter() - began
            job = _seconds(client, rows, shard_rows, folder, runner)
        finally:
            began = time.perf_counter()
            stop = ray.shutdown
            stop()
        return Run(job, around + time.perf_counter() - began, _digest(folder))


def _seconds(
    client: Client, rows: int, shard_rows: int, folder: str, runner: jobs.Runner | None
) -> float:
    began = time.perf_counter()
    jobs.sample(client, rows, folder, seed=7, shard_rows=shard_rows, runner=runner)
    return time.perf_counter() - began


def _digest(folder: str) -> str:
    return hashlib.sha256((Path(folder) / "cursor.jsonl").read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
