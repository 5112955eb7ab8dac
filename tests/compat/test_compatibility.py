"""The client of version 0.1.0 with today's server, and today's client with that version's protos.

What each of them does is in calls.py, old_server.py is the other server, and README.md says
where the wheel comes from.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from latentserve import __version__, jobs
from latentserve.client import Client
from tests.support import ROOT
from tests.support.environments import pins, python_with_wheel
from tests.support.processes import TRANSPORTS, Server
from tests.support.tiny import write_tiny

HERE = Path(__file__).parent
WHEEL = HERE / "latentserve-0.1.0-py3-none-any.whl"
TOKEN = "secret-of-many-characters"
#: Of `Calls`, of its subclass, and of `Programs`.
TESTS = 51


def run_calls(
    python: str | Path, version: str, path: str, server: str, busy: str, jobs_folder: Path
) -> None:
    """Has a client make all calls.

    Args:
        python: The interpreter that has it.
        version: The client's version.
        path: PYTHONPATH.
        server: Address of the server.
        busy: Address of the server that is full.
        jobs_folder: Where jobs are left.
    """
    jobs_folder.mkdir()
    done = subprocess.run(
        [python, HERE / "calls.py", "-v"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT.anchor,
        env={
            **os.environ,
            "PYTHONPATH": path,
            "LATENTSERVE_SERVER": server,
            "LATENTSERVE_BUSY": busy,
            "LATENTSERVE_JOBS": str(jobs_folder),
            "LATENTSERVE_CLIENT": version,
        },
    )
    assert done.returncode == 0, done.stderr
    assert f"Ran {TESTS} tests" in done.stderr


# ------------------------------------------------------- that client with today's server


@pytest.fixture(scope="module")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the client of 0.1.0 and what it needs, and nothing else."""
    return python_with_wheel(WHEEL, tmp_path_factory.mktemp("old") / "env", pins())


@pytest.mark.slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_that_versions_client_works_with_todays_server(
    old_client: Path, kinds: Path, tmp_path: Path, transport: str
) -> None:
    models, busy_models, token = tmp_path / "models", tmp_path / "busy", tmp_path / "token"
    for name in ("gmm", "delta"):
        shutil.copytree(kinds / "models" / name, models / name)
    write_tiny(models / "fragile", fails_above=100.0)
    write_tiny(busy_models / "tiny")
    token.write_text(TOKEN)
    common = ("--transport", transport, "--token-file", str(token))
    wide = ("--admin", "--default-model", "gmm", "--max-rows", "16")
    narrow = ("--max-rows", "4", "--max-queue-rows", "4", "--batch-window-seconds", "1")
    with (
        Server(models, tmp_path / "log", *common, *wide) as server,
        Server(busy_models, tmp_path / "busy.log", *common, *narrow) as busy,
    ):
        targets = server.wait_until_serving().target, busy.wait_until_serving().target
        run_calls(old_client, "0.1.0", "", *targets, tmp_path / "jobs")
        with Client(server.target, token=TOKEN) as client:
            done = jobs.sample(client, 25, tmp_path / "jobs" / "samples", seed=5, shard_rows=10)
    # Today's client goes on with what that one left.
    assert (done.rows, done.rows_before, done.lost) == (25, 25, ())


# ------------------------------------------------------- today's client with its protos


@contextmanager
def old_server(*arguments: str) -> Iterator[str]:
    """The address of a server whose stubs are those of the wheel."""
    process = subprocess.Popen(
        [sys.executable, HERE / "old_server.py", *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(WHEEL)},
    )
    with process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.communicate(timeout=30)
    assert process.returncode == 0


def test_todays_client_works_with_a_server_of_that_versions_protos(tmp_path: Path) -> None:
    with ExitStack() as servers:
        targets = [servers.enter_context(old_server(*more)) for more in ((), ("--busy",))]
        run_calls(sys.executable, __version__, str(ROOT), *targets, tmp_path / "jobs")
