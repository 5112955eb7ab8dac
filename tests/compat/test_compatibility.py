"""The client of version 0.1.0 with today's server, and today's client with that version's protos.

calls.py makes the calls, old_server.py is the server of the old protos, and README.md says how the
wheel was built.
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
#: Tests in calls.py, counting those of the blocking client again for the asynchronous one.
TESTS = 51


def run_calls(python: str | Path, targets: tuple[str, str], jobs_folder: Path, **env: str) -> None:
    """Runs calls.py.

    Args:
        python: Interpreter that finds the client.
        targets: Addresses of the server and of the busy server.
        jobs_folder: Folder for the results of jobs; is created.
        **env: More environment variables, for which see calls.py.
    """
    jobs_folder.mkdir()
    env |= dict(zip(("LATENTSERVE_SERVER", "LATENTSERVE_BUSY"), targets, strict=True))
    done = subprocess.run(
        [python, HERE / "calls.py", "-v"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=ROOT.anchor,
        env={**os.environ, "LATENTSERVE_JOBS": str(jobs_folder), **env},
    )
    assert done.returncode == 0, done.stderr
    assert f"Ran {TESTS} tests" in done.stderr


# ------------------------------------------------------ the old client with today's server


@pytest.fixture(scope="module")
def old_client(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Interpreter with the client of 0.1.0 and its dependencies, and nothing else."""
    return python_with_wheel(WHEEL, tmp_path_factory.mktemp("old") / "env", pins())


@pytest.mark.slow
@pytest.mark.parametrize("transport", TRANSPORTS)
def test_the_old_client_works_with_todays_server(
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
        run_calls(
            old_client,
            targets,
            tmp_path / "jobs",
            PYTHONPATH="",
            LATENTSERVE_CLIENT="0.1.0",
            LATENTSERVE_INDEX="call",
        )
        with Client(server.target, token=TOKEN) as client:
            done = jobs.sample(client, 25, tmp_path / "jobs" / "samples", seed=5, shard_rows=10)
    # Today's client continues a job of the old one.
    assert (done.rows, done.rows_before, done.lost) == (25, 25, ())


# ------------------------------------------------------ today's client with the old protos


@contextmanager
def old_server(*arguments: str) -> Iterator[str]:
    """Address of a server that uses the stubs in the wheel."""
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


def test_todays_client_works_with_a_server_of_the_old_protos(tmp_path: Path) -> None:
    with ExitStack() as servers:
        targets = (
            servers.enter_context(old_server()),
            servers.enter_context(old_server("--busy")),
        )
        run_calls(
            sys.executable,
            targets,
            tmp_path / "jobs",
            PYTHONPATH=str(ROOT),
            LATENTSERVE_CLIENT=__version__,
            LATENTSERVE_INDEX="message",
        )
