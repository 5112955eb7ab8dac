"""Workers and jobs that are killed at random moments lose no row and leave no wrong one."""

import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults import answers
from tests.faults.answers import Answers
from tests.faults.envoy import Envoy
from tests.faults.fleet import Fleet, kill_process
from tests.faults.load import Load, Tally
from tests.faults.table import Table

_JOB_ROWS = 30_000
_SHARD_ROWS = 2_000
# Kills of the workers of one fleet: the supervisor waits longer after each of a worker.
_KILLS_PER_FLEET = 10


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_100_workers_killed(
    models: Path, right: Answers, envoy: Path, table: Table, tmp_path: Path
) -> None:
    tallies: dict[str, Tally] = {}
    for number in range(100 // _KILLS_PER_FLEET):
        folder = tmp_path / str(number)
        folder.mkdir()
        with (
            Fleet(models, folder, 2, options=("--workers", "2")) as fleet,
            Envoy(envoy, fleet.addresses, folder) as proxy,
        ):
            targets = {"Envoy": proxy.target, "round robin": fleet.target, "HTTP": fleet.gateway}
            with Load(targets, right, folder / "jobs") as load:
                for _ in range(_KILLS_PER_FLEET):
                    time.sleep(random.uniform(0.3, 2.0))
                    kill_process(random.choice(fleet.workers(0) + fleet.workers(1)))
                time.sleep(2.0)
            for index in range(2):
                assert fleet.is_answering(index), fleet.logs()
        for reached, row in load.tallies().items():
            table.add("100 SIGKILLs of workers", reached, row)
            for (kind, retries), tally in row.items():
                key = f"{reached}, {kind}, {'with' if retries else 'without'} retries"
                tallies[key] = tallies.get(key, Tally()) + tally
    for key, tally in tallies.items():
        assert tally.wrong_rows == 0, key
        if "with retries" in key:
            assert not tally.failures, (key, tally.failures)


@pytest.mark.parametrize(
    "kills",
    [5, pytest.param(100, marks=[pytest.mark.long, pytest.mark.timeout(1200)])],
)
def test_jobs_killed(kills: int, models: Path, table: Table, tmp_path: Path) -> None:
    folder, whole = tmp_path / "job", tmp_path / "whole"
    with Fleet(models, tmp_path, 1) as fleet:
        began = time.monotonic()
        assert _job(fleet, whole).wait(120) == 0
        seconds = time.monotonic() - began
        wanted = answers.digests(whole)
        assert len(wanted) == 2 * _JOB_ROWS // _SHARD_ROWS
        killed = finished = 0
        while killed < kills:
            job = _job(fleet, folder)
            try:
                assert job.wait(random.uniform(0.1, 1.0) * seconds) == 0
            except subprocess.TimeoutExpired:
                job.kill()
                job.wait()
                killed += 1
                continue
            finished += 1
            assert answers.digests(folder) == wanted
            shutil.rmtree(folder)
        assert _job(fleet, folder).wait(120) == 0
        assert answers.digests(folder) == wanted
    table.notes.append(
        f"{kills} SIGKILLs of a job of {_JOB_ROWS:,} rows at random moments: {finished + 1} "
        "finished with the right bytes, none with others"
    )


def _job(fleet: Fleet, folder: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "latentserve", "batch", "sample", "-n", str(_JOB_ROWS),
         "--seed", "6", "--latents", "--shard-rows", str(_SHARD_ROWS), "--to", folder,
         "--server", fleet.target],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ.copy(),
    )  # fmt: skip
