"""Data-parallel training: the numbers of one process, one that writes, failures of any."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image

from tests.support import ROOT
from tests.support.blobs import draw_blobs
from tests.support.things import write_things
from tests.support.tiny_runs import SMALL, assert_same, trainer_state
from training.cli import main
from training.errors import ConfigError
from training.parallel import Parallel
from training.run_folder import RunFolder

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("one_thread", "no_pictures", "signal_handlers"),
]

#: Phases end at steps 12 (autoencoder), 18 (prior fit), 30 (joint) and 36 (prior refit).
STEPS = (*SMALL, "--steps", "24")


def torchrun(
    *arguments: str, module: str = "tests.support.interrupted", **environment: Any
) -> subprocess.CompletedProcess[str]:
    """Runs a command on two processes of this machine."""
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", module, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"}
        | {name: str(value) for name, value in environment.items()},
    )  # fmt: skip


@pytest.fixture(scope="module")
def together(
    blobs_data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A complete run of two processes, and its output."""
    folder = tmp_path_factory.mktemp("together") / "run"
    done = torchrun(*STEPS, *blobs_data, "--out", str(folder))
    assert done.returncode == 0, done.stderr
    return folder, done


def weights(run: Path) -> dict[str, torch.Tensor]:
    average = torch.load(run / "checkpoint.pt", weights_only=True)["trainer"]["average"]
    return {name: value for name, value in average.items() if value.is_floating_point()}


def test_two_processes_give_the_numbers_of_one(
    together: tuple[Path, Any], blobs_data: tuple[str, str], tmp_path: Path
) -> None:
    run, _ = together
    assert main([*STEPS, *blobs_data, "--out", str(tmp_path / "alone")]) == 0
    logs = [RunFolder(path).read_log() for path in (run, tmp_path / "alone")]
    assert len(logs[0]) == len(logs[1]) == 36
    assert {entry["phase"] for entry in logs[0]} == {
        "autoencoder", "prior fit", "joint", "prior refit",
    }  # fmt: skip
    for two, one in zip(*logs, strict=True):
        assert two.keys() == one.keys()
        for name, value in one.items():
            if name != "phase":
                assert two[name] == pytest.approx(value, rel=1e-3, abs=1e-3), (one["step"], name)
    alone = weights(tmp_path / "alone")
    for name, value in weights(run).items():
        torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-3)
    metrics = [
        json.loads((path / "metrics.json").read_text()) for path in (run, tmp_path / "alone")
    ]
    assert metrics[0]["elbo"] == pytest.approx(metrics[1]["elbo"], abs=1e-2)
    assert RunFolder(run).read_config().processes == 2


def test_only_the_leader_prints_and_writes(together: tuple[Path, Any]) -> None:
    run, done = together
    assert len(done.stdout.splitlines()) == 2
    assert done.stdout.startswith("test ELBO ")
    lines = done.stderr.splitlines()
    assert len(lines) == len(set(lines)), done.stderr
    assert "Warning" not in done.stderr
    (begun,) = (line for line in lines if line.startswith("training dense-gmm on 324 images of "))
    assert " in 2 processes: 24 steps of 32 images" in begun
    # Only the leader has written: each step is logged once, and no temporary file is left.
    steps = [entry["step"] for entry in RunFolder(run).read_log()]
    assert steps == list(range(1, 37))
    assert not list(run.rglob(".*.tmp"))


@pytest.fixture(scope="module")
def killed(
    blobs_data: tuple[str, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """A run whose second process was killed during the fit of the prior."""
    run = tmp_path_factory.mktemp("killed") / "run"
    command = (*STEPS, *blobs_data, "--out", str(run))
    return run, torchrun(*command, CHECKPOINT_EVERY=5, KILL_AT=17, KILL_RANK=1)


@pytest.fixture(scope="module")
def resumed(killed: tuple[Path, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the killed run, for the commands to resume."""
    return Path(shutil.copytree(killed[0], tmp_path_factory.mktemp("resumed") / "run"))


def write_parquet(path: Path) -> Path:
    """Writes 90 encoded pictures of blobs."""
    files = []
    for image in draw_blobs(90)[0]:
        buffer = io.BytesIO()
        Image.fromarray(image[0]).save(buffer, "PNG")
        files.append(buffer.getvalue())
    pq.write_table(pa.table({"image": files}), path)
    return path


class Outcome(NamedTuple):
    """Exit status and output of a command on one process."""

    status: int
    out: str
    err: str


@pytest.fixture(scope="module")
def commands(
    together: tuple[Path, Any],
    resumed: Path,
    blobs_data: tuple[str, str],
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, list[Outcome]]]:
    """The folder of some commands, and by name their outcomes on both processes."""
    folder = tmp_path_factory.mktemp("commands")
    new, there = str(folder / "new"), str(together[0])
    given = {
        "batch": ["", *STEPS, *blobs_data, "--set", "batch_size=31", "--out", new],
        "device": ["", *STEPS, *blobs_data, "--device", "cuda", "--out", new],
        "key": ["", *STEPS, *blobs_data, "--set", "depth=3", "--out", new],
        "budget-text": ["", *SMALL, *blobs_data, "--budget", "soon", "--out", new],
        "dry": ["", *STEPS, *blobs_data, "--dry-run"],
        "there": ["", *STEPS, *blobs_data, "--out", there],
        "other": ["", *STEPS, *blobs_data, "--set", "beta=2", "--resume", "--out", there],
        "disk": ["fails-on-1", *STEPS, *blobs_data, "--out", new],
        "data": ["differs-on-1", *STEPS, *blobs_data, "--out", new],
        "parquet": ["", *SMALL, "--data", f"parquet:{write_parquet(folder / 'pictures.parquet')}",
                    "--steps", "2", "--out", str(folder / "parquet")],
        "complete": ["", *STEPS, *blobs_data, "--resume", "--out", there],
        "resume": ["", *STEPS, *blobs_data, "--resume", "--out", str(resumed)],
        "budget": ["", *SMALL, *blobs_data, "--budget", "1s", "--out",
                   str(folder / "budget")],
    }  # fmt: skip
    (folder / "commands").write_text(json.dumps(list(given.values())))
    done = torchrun(COMMANDS=folder / "commands", LATENTSERVE_DATA_DIR=folder / "cache")
    assert done.returncode == 0, done.stderr
    answers = [json.loads((folder / f"commands.{rank}").read_text()) for rank in (0, 1)]
    return folder, {
        name: [Outcome(*outcome) for outcome in pair]
        for name, pair in zip(given, zip(*answers, strict=True), strict=True)
    }


def test_a_killed_process_ends_all_processes(killed: tuple[Path, Any]) -> None:
    run, done = killed
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("latentserve train: ")]
    assert len(ours) <= 1, done.stderr
    assert not ours or "--resume" in ours[0]
    assert "training/trainer.py" not in done.stderr
    assert RunFolder(run).steps_done() == 15


def test_a_resumed_parallel_run_reaches_the_numbers_of_the_unbroken_run(
    together: tuple[Path, Any], resumed: Path, commands: tuple[Path, Any]
) -> None:
    run = resumed
    leader, other = commands[1]["resume"]
    assert leader.status == 0, leader.err
    assert other == (0, "", "")
    assert f"resuming {run} at step 15 of 36 in 2 processes\n" in leader.err
    assert "note: " not in leader.err
    assert (run / "log.jsonl").read_text() == (together[0] / "log.jsonl").read_text()
    # With the window of gradient norms, which both processes have to share.
    assert_same(trainer_state(run), trainer_state(together[0]))


@pytest.mark.parametrize(
    ("command", "status", "text"),
    [
        ("batch", 2, "batch_size: got 31, wanted a multiple of the 2 processes"),
        ("device", 2, "device: got 'cuda', wanted "),
        ("key", 2, "--set: got 'depth=3', wanted "),
        ("budget-text", 2, "got 'soon'"),
        ("dry", 2, "--dry-run: got 2 processes, wanted one"),
        ("there", 1, "there is a run here already"),
        ("other", 1, "the run here has other settings"),
    ],
)
def test_a_refused_command_ends_all_processes_and_the_leader_says_why(
    command: str, status: int, text: str, commands: tuple[Path, Any]
) -> None:
    leader, other = commands[1][command]
    assert leader.status == status
    assert leader.err.startswith("latentserve train: ")
    assert text in leader.err
    assert leader.err.count("\n") == 1
    assert other in ((1, "", ""), (status, "", ""))
    assert not (commands[0] / "new").exists()


def test_a_failure_on_one_process_is_printed_by_that_process(commands: tuple[Path, Any]) -> None:
    leader, other = commands[1]["disk"]
    assert leader == (1, "", "")
    assert other == (1, "", "latentserve train: the disk of process 1 is broken\n")


def test_a_process_with_other_data_ends_all_processes(commands: tuple[Path, Any]) -> None:
    leader, other = commands[1]["data"]
    assert leader == (1, "", "")
    assert (other.status, other.out) == (1, "")
    assert other.err.startswith("latentserve train: idx:")
    assert other.err.endswith(" is not the data that process 0 has\n")
    assert not (commands[0] / "new").exists()


def test_a_run_of_two_processes_is_resumed_by_one_with_a_note(
    together: tuple[Path, Any],
    killed: tuple[Path, Any],
    blobs_data: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    shutil.copytree(killed[0], run)
    assert main([*STEPS, *blobs_data, "--resume", "--out", str(run)]) == 0
    lines = capsys.readouterr().err.splitlines()
    note = "note: processes was 2 and is 1: the numbers may differ from those of an unbroken run"
    assert lines[:2] == [note, f"resuming {run} at step 15 of 36"]
    two = weights(together[0])
    for name, value in weights(run).items():
        torch.testing.assert_close(value, two[name], rtol=1e-3, atol=1e-3)


def test_a_complete_run_is_not_trained_again_by_several_processes(
    together: tuple[Path, Any], commands: tuple[Path, Any]
) -> None:
    leader, other = commands[1]["complete"]
    assert (leader.status, leader.err) == (0, f"{together[0]} is complete already\n")
    assert leader.out.startswith("test ELBO ")
    assert other == (0, "", "")


def test_a_budget_becomes_the_same_number_of_steps_on_all_processes(
    commands: tuple[Path, Any],
) -> None:
    leader, other = commands[1]["budget"]
    assert leader.status == other.status == 0, leader.err
    run = RunFolder(commands[0] / "budget")
    assert run.complete
    assert run.read_config().steps > 5


def test_the_processes_of_a_host_decode_pictures_once(commands: tuple[Path, Any]) -> None:
    leader, other = commands[1]["parquet"]
    assert leader.status == 0, leader.err
    assert other == (0, "", "")
    said = ("reading 90 images from", "90 images, decoded before", "waiting for another process")
    assert any(text in leader.err for text in said), leader.err
    (images,) = (commands[0] / "cache" / "decoded").glob("*/images")
    assert images.stat().st_size == 90 * 8 * 8


@pytest.mark.parametrize("world", [1, 2, 4])
def test_slices_of_a_batch_are_equal_and_in_rank_order(world: int) -> None:
    batch = torch.arange(24).reshape(2, 12)
    slices = [Parallel(rank, world).slice(batch, axis=1) for rank in range(world)]
    assert {part.shape for part in slices} == {(2, 12 // world)}
    assert torch.equal(torch.cat(slices, dim=1), batch)


def test_a_batch_that_does_not_divide_among_the_processes_is_refused() -> None:
    Parallel(0, 3).check_batch(96)
    with pytest.raises(ConfigError, match=re.escape("got 128, wanted a multiple of the 3")):
        Parallel(0, 3).check_batch(128)
    Parallel(0, 2).check_batch(32, 8)
    wanted = "got 24, wanted a multiple of the 2 processes times the 8 images of a group"
    with pytest.raises(ConfigError, match=wanted):
        Parallel(0, 2).check_batch(24, 8)


def test_two_processes_that_join_posteriors_give_the_numbers_of_one(tmp_path: Path) -> None:
    command = [
        "--preset", "dense", "--data", write_things(tmp_path / "data", 80), "--steps", "12",
        "--device", "cpu", "--set", "joined=3", "--set", "conditional=true",
        "--set", "layers=16:relu", "--set", "latent_dim=2", "--set", "batch_size=32",
    ]  # fmt: skip
    done = torchrun(*command, "--out", str(tmp_path / "together"))
    assert done.returncode == 0, done.stderr
    assert main([*command, "--out", str(tmp_path / "alone")]) == 0
    logs = [RunFolder(tmp_path / name).read_log() for name in ("together", "alone")]
    assert len(logs[0]) == len(logs[1]) == 12
    for two, one in zip(*logs, strict=True):
        for name in ("elbo", "reconstruction", "kl"):
            assert two[name] == pytest.approx(one[name], rel=1e-3, abs=1e-3), (one["step"], name)


def test_ranks_are_read_from_all_of_torchruns_variables_or_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    assert Parallel.from_environment() == Parallel(0, 1, 0)
    monkeypatch.setenv("RANK", "5")
    assert Parallel.from_environment() == Parallel(0, 1, 0)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert Parallel.from_environment() == Parallel(5, 8, 1)
    assert not Parallel.from_environment().leads


def test_collectives_of_a_single_process_return_its_own_values() -> None:
    alone = Parallel()
    numbers = torch.tensor([1.0, 2.0])
    module = torch.nn.Linear(1, 1)
    with alone.process_group():
        assert alone.leads
        assert alone.any(True)
        assert not alone.any(False)
        assert alone.broadcast("x") == "x"
        assert torch.equal(alone.mean(numbers), numbers)
        assert alone.wrap(module, torch.device("cpu")) is module
        with pytest.raises(ConfigError, match="as it was"), alone.fail_together():
            raise ConfigError("as it was")
