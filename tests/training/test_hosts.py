"""A training on two hosts, which processes and a whole host are killed in the middle of."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import ROOT
from tests.support.hosts import Host, two_hosts
from tests.support.tiny_runs import ONE_THREAD, SMALL, assert_same, trainer_state
from training.cli import main
from training.run_folder import RunFolder

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread", "no_pictures", "signal_handlers"),
]

#: Phases end at steps 12 (autoencoder), 18 (prior fit), 30 (joint) and 36 (prior refit).
STEPS = (*SMALL, "--steps", "24")
_SECONDS = 180.0
# A host is given up that has not been heard of for three of these intervals, by default of 5 s.
_SOON = "keep_alive_interval=2,join_timeout=120"


def start(
    host: Host, first: Host, command: tuple[str, ...], **environment: str
) -> "subprocess.Popen[bytes]":
    """Starts this host's part of a training, whose hosts meet at the first one."""
    return host.torchrun(
        "--nnodes", "2", "--nproc-per-node", "1", "--max-restarts", "3",
        "--rdzv-backend", "c10d", "--rdzv-id", "run", "--rdzv-endpoint", f"{first.name}:29500",
        "--rdzv-conf", _SOON, "-m", "tests.support.interrupted", *command,
        environment={
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "cable",
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            "CHECKPOINT_EVERY": "5",
            **environment,
        },
    )  # fmt: skip


def weights(run: Path) -> dict[str, torch.Tensor]:
    average = trainer_state(run)["average"]
    return {name: value for name, value in average.items() if value.is_floating_point()}


def figures(run: Path) -> dict[str, Any]:
    """The figures of a run, but for the time that it took."""
    metrics: dict[str, Any] = json.loads((run / "metrics.json").read_text())
    del metrics["train_seconds_per_thread"]
    return metrics


@pytest.fixture(scope="module")
def mended(
    blobs_data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str, str]:
    """A run that was begun again three times, and what the two hosts printed.

    The leader is killed in the fit of the prior, the second host with torchrun in the joint phase,
    and the leader again once the training is over but not measured.
    """
    folder = tmp_path_factory.mktemp("hosts")
    run, once = folder / "run", folder / "once"
    once.mkdir()
    command = (*STEPS, *blobs_data, "--out", str(run), "--resume")
    with two_hosts(folder) as (one, two):
        first = start(one, one, command, KILL_AT="17", KILL_MEASURING="1", KILL_ONCE=str(once))
        second = start(two, one, command, KILL_HOST_AT="27", KILL_RANK="1")
        assert second.wait(_SECONDS) == -signal.SIGKILL, two.log.read_text()
        second = start(two, one, command)
        assert first.wait(_SECONDS) == 0, one.log.read_text()
        assert second.wait(_SECONDS) == 0, two.log.read_text()
        assert one.processes() == two.processes() == []
    return run, one.log.read_text(), two.log.read_text()


def test_the_first_host_prints_what_happened_once(mended: tuple[Path, str, str]) -> None:
    run, one, two = mended
    begun = [line for line in one.splitlines() if line.startswith("training dense-gmm on 324")]
    assert len(begun) == 1
    assert " in 2 processes: 24 steps of 32 images" in begun[0]
    resumed = [line for line in one.splitlines() if line.startswith("resuming ")]
    assert resumed == [
        f"resuming {run} at step {step} of 36 in 2 processes" for step in (15, 25, 36)
    ]
    assert one.count("test ELBO ") == one.count(f"run folder: {run}") == 1
    for text in ("training dense-gmm", "resuming ", "test ELBO ", "run folder: "):
        assert text not in two
    assert "Traceback" not in one + two


def test_a_training_whose_hosts_were_killed_ends_as_if_they_had_not_been(
    mended: tuple[Path, str, str], blobs_data: tuple[str, str], tmp_path: Path
) -> None:
    unbroken = tmp_path / "run"
    subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "tests.support.interrupted", *STEPS, *blobs_data, "--out", str(unbroken)],
        check=True,
        timeout=_SECONDS,
        cwd=ROOT,
        env=ONE_THREAD,
    )  # fmt: skip
    run = mended[0]
    assert_same(trainer_state(run), trainer_state(unbroken))
    assert (run / "log.jsonl").read_text() == (unbroken / "log.jsonl").read_text()
    assert figures(run) == figures(unbroken)
    assert not list(run.rglob(".*.tmp"))


def test_two_hosts_give_the_numbers_of_one_process(
    mended: tuple[Path, str, str], blobs_data: tuple[str, str], tmp_path: Path
) -> None:
    alone = tmp_path / "run"
    assert main([*STEPS, *blobs_data, "--out", str(alone)]) == 0
    ours, theirs = (RunFolder(run).read_log() for run in (mended[0], alone))
    assert ours[-1]["validation_elbo"] == pytest.approx(theirs[-1]["validation_elbo"], abs=1e-2)
    assert figures(mended[0])["elbo"] == pytest.approx(figures(alone)["elbo"], abs=1e-2)
    expected = weights(alone)
    for name, value in weights(mended[0]).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-3)
