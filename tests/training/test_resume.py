"""Resuming runs that were killed or stopped, and refusing those that are damaged or others."""

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

from tests.support.blobs import write_blobs
from tests.support.tiny_runs import (
    COMMAND,
    MODEL,
    ONE_THREAD,
    PHASES,
    PLAIN,
    STEPS,
    TOTAL,
    assert_one_line,
    assert_same,
    step_to,
    torch_copy,
    trainer_of,
    trainer_state,
)
from training.cli import main
from training.data.datasets import Dataset, Split
from training.data.rows import Rows
from training.errors import CheckpointError
from training.model.config import ModelConfig, PriorConfig
from training.run_config import FORMAT
from training.run_folder import RunFolder
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures", "signal_handlers")


#: Changes of a training on grey values, which are moved and mirrored.
GREY = {**PHASES, "binarize": False, "augment": ("flip", "shift")}


@pytest.fixture
def finished(unbroken: Path, tmp_path: Path) -> Path:
    """A copy of a complete run."""
    shutil.copytree(unbroken, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """A copy of a run with a checkpoint and without its metrics, so not complete."""
    (finished / "metrics.json").unlink()
    return finished


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def assert_numbers_of(unbroken: Path, run: Path) -> None:
    assert (run / "log.jsonl").read_text() == (unbroken / "log.jsonl").read_text()
    assert_same(trainer_state(run), trainer_state(unbroken))
    metrics, wanted = (json.loads((path / "metrics.json").read_text()) for path in (run, unbroken))
    for figures in (metrics, wanted):
        del figures["train_seconds_per_thread"]
    assert metrics == wanted
    name = "score_percentiles.json"
    assert (run / name).read_text() == (unbroken / name).read_text()


def start(command: tuple[str, ...], run: Path, **environment: Any) -> subprocess.Popen[bytes]:
    """Begins or resumes a run in a process that `environment` makes kill itself."""
    return subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.support.interrupted",
            *command,
            "--out",
            str(run),
            "--resume",
        ],
        env=ONE_THREAD | {name: str(value) for name, value in environment.items()},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_repeatedly(
    command: tuple[str, ...], run: Path, deaths: Sequence[tuple[dict[str, int], int, int]]
) -> None:
    """Begins or resumes a run and has it killed, once per death.

    Args:
        command: The arguments of the run.
        run: Its folder.
        deaths: Environment that kills it, steps between checkpoints, and the step of the
            last checkpoint then; -1 for none.
    """
    for death, every, kept in deaths:
        process = start(command, run, CHECKPOINT_EVERY=every, **death)
        assert process.wait(120) == -signal.SIGKILL
        assert not RunFolder(run).complete
        if kept < 0:
            # Killed while it wrote the first checkpoint.
            assert list(run.glob(".*.tmp"))
            assert not RunFolder(run).has_checkpoint
        else:
            assert trainer_state(run)["step"] == kept


@pytest.mark.slow
def test_a_run_killed_in_every_phase_reaches_the_numbers_of_the_unbroken_run(
    command: tuple[str, ...],
    unbroken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    early, late = tmp_path / "early", tmp_path / "late"
    with ThreadPoolExecutor(2) as pool:
        runs = [
            pool.submit(kill_repeatedly, command, run, deaths)
            for run, deaths in (
                (early, [
                    ({"KILL_IN_WRITE": 3}, 5, -1),
                    ({"KILL_AT": 13}, 5, 10),  # autoencoder
                    ({"KILL_IN_MIXTURE": 1}, 10, 20),  # at the first step of the prior fit
                    ({"KILL_AT": 27}, 5, 25),  # prior fit
                ]),
                (late, [
                    ({"KILL_AT": 31}, 10, 30),  # at the end of the prior fit
                    ({"KILL_AT": 44}, 5, 40),  # joint
                    ({"KILL_IN_MIXTURE": 1}, 10, 50),  # at the first step of the prior refit
                    ({"KILL_AT": 57}, 5, 55),  # prior refit
                ]),
            )
        ]  # fmt: skip
        for killed in runs:
            killed.result()
    # There are frames of steps after the checkpoint, and one that was being written.
    assert len(RunFolder(late).read_frames()) == 40
    (late / "frames" / ".000000017.npz.cut.tmp").write_bytes(b"half")
    for run, kept in ((early, 25), (late, 55)):
        assert main([*command, "--out", str(run), "--resume"]) == 0
        lines = capsys.readouterr().err.splitlines()
        assert lines[0] == f"resuming {run} at step {kept} of {TOTAL}"
        assert_numbers_of(unbroken, run)
        assert_same_frames(unbroken, run)
        assert not list(run.rglob(".*.tmp"))


def assert_same_frames(unbroken: Path, run: Path) -> None:
    names = [path.name for path in sorted((unbroken / "frames").iterdir())]
    assert [path.name for path in sorted((run / "frames").iterdir())] == names
    frames = [RunFolder(path).read_frames() for path in (run, unbroken)]
    for frame, wanted in zip(*frames, strict=True):
        assert frame.keys() == wanted.keys()
        assert (frame["step"], frame["phase"]) == (wanted["step"], wanted["phase"])
        for name in ("reconstructions", "means"):
            assert np.array_equal(frame[name], wanted[name])


@pytest.mark.parametrize(
    ("model", "changes"),
    [
        (MODEL, PHASES),
        (dataclasses.replace(MODEL, prior=PriorConfig("gmm", components=4)),
         {**PHASES, "prior_start": 0.0, "ema": 0.9}),
        (dataclasses.replace(MODEL, posterior="delta"), {**PHASES, "binarize": False}),
        (MODEL, {**PHASES, "prior_start": 1.0, "objective": "iwae", "draws": 2}),
        (dataclasses.replace(MODEL, likelihood="gaussian"), GREY),
        (dataclasses.replace(MODEL, likelihood="logistic"), GREY),
        (dataclasses.replace(MODEL, likelihood="logistic", mixture=3), GREY),
        (dataclasses.replace(MODEL, conditional=True), {**PHASES, "noise": 0.3}),
        (PLAIN, {"objective": "wae", "batch_size": 16, "noise": 0.2, "noise_kind": "mask"}),
        (dataclasses.replace(MODEL, conditional=True, likelihood="gaussian"),
         {**GREY, "prior_start": 1.0, "joined": 3, "draws": 2, "noise": 0.1}),
    ],
    ids=["flow-gmm", "from the start", "plain with a prior", "afterwards", "gaussian", "logistic",
         "mixture", "conditional", "wasserstein", "joined"],
)  # fmt: skip
@pytest.mark.slow
@pytest.mark.parametrize("place", ["memory", "disk"])
def test_a_trainer_restored_at_any_step_continues_to_the_same_numbers(
    model: ModelConfig, changes: dict[str, Any], place: str, few: Dataset
) -> None:
    groups = np.arange(len(few.train.images)) // 6
    few = dataclasses.replace(few, train=dataclasses.replace(few.train, groups=groups))
    if place == "disk":
        rows = Rows(few.train.images, np.arange(len(few.train.images))[::-1].copy())
        few = dataclasses.replace(few, train=Split(rows, few.train.labels[::-1].copy(), groups))
    trainer = trainer_of(few, 16, model, **changes)
    states, numbers = [], []
    while trainer.step < trainer.total_steps:
        if trainer.step % 3 == 0 or trainer.step in [phase.start for phase in trainer.phases]:
            states.append(torch_copy(trainer.state_dict()))
        numbers.append(trainer.train_step())
    for state in states:
        again = trainer_of(few, 1, model, **changes)
        again.load_state_dict(torch_copy(state))
        assert step_to(again, trainer.total_steps) == numbers[state["step"] :]
        assert_same(again.state_dict(), trainer.state_dict())
    assert again.validate() == trainer.validate()


def signalling(real: Callable[..., Any], call: int) -> Callable[..., Any]:
    """Wraps `real` so that the process gets SIGTERM just before call number `call`."""
    calls = itertools.count(1)

    def wrapped(*arguments: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    return wrapped


@pytest.mark.parametrize("moment", ["update", "validation", "log"])
def test_a_run_stopped_within_a_step_resumes_to_the_numbers_of_the_unbroken_run(
    moment: str,
    command: tuple[str, ...],
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    hook = None
    if moment == "update":
        hook = register_optimizer_step_post_hook(signalling(lambda *_: None, 37))
    elif moment == "validation":
        monkeypatch.setattr(Trainer, "validate", signalling(Trainer.validate, 3))
    else:
        monkeypatch.setattr(RunFolder, "log", signalling(RunFolder.log, 30))
    try:
        assert main([*command, "--out", str(run)]) == 130
    finally:
        if hook is not None:
            hook.remove()
    monkeypatch.undo()
    output = capsys.readouterr().err.strip().splitlines()[-1]
    assert output.startswith("latentserve train: ")
    assert 0 < trainer_state(run)["step"] < TOTAL
    assert main([*command, "--out", str(run), "--resume"]) == 0
    assert_numbers_of(unbroken, run)


def test_an_existing_run_is_not_overwritten(
    command: tuple[str, ...], finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checksums(finished)
    for _ in range(2):
        assert main([*command, "--out", str(finished)]) == 1
        assert_one_line(capsys.readouterr().err, str(finished), "--resume")
        assert checksums(finished) == before
        # An incomplete run is refused as well.
        (finished / "metrics.json").unlink(missing_ok=True)
        before.pop("metrics.json", None)


def test_a_finished_run_without_its_checkpoint_is_not_overwritten(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "checkpoint.pt").unlink()
    before = checksums(finished)
    other = ("--preset", "dense", "--steps", "7")
    assert main([*other, "--out", str(finished)]) == 1
    assert_one_line(capsys.readouterr().err, str(finished))
    assert checksums(finished) == before


@pytest.mark.parametrize(
    "change",
    [
        ("--set", "beta=2"),
        ("--set", "latent_dim=4"),
        ("--set", "prior.components=5"),
        ("--set", "prior_start=0.4"),
        ("--preset", "iwae"),
        ("--steps", str(STEPS + 1)),
        ("--data", "fashion-mnist"),
        ("--image-size", "9"),
    ],
    ids=" ".join,
)
def test_resuming_with_other_settings_is_refused(
    change: tuple[str, ...],
    command: tuple[str, ...],
    unfinished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    before = checksums(unfinished)
    assert main([*command, *change, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, str(unfinished), "wanted")
    assert checksums(unfinished) == before


def test_resuming_under_other_conditions_prints_a_note(
    command: tuple[str, ...], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changed = [*command, "--precision", "bfloat16", "--out", str(unfinished), "--resume"]
    assert main(changed) == 0
    lines = capsys.readouterr().err.splitlines()
    notes = [line for line in lines if line.startswith("note: ") and "instructions" not in line]
    assert notes == [
        "note: precision was float32 and is bfloat16: the numbers may differ from those of an "
        "unbroken run"
    ]


def test_resuming_with_changed_data_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = write_blobs(tmp_path / "data"), tmp_path / "run"
    assert main([*COMMAND, "--data", data, "--out", str(run)]) == 0
    (run / "metrics.json").unlink()
    capsys.readouterr()
    write_blobs(tmp_path / "data", rows=401)
    assert main([*COMMAND, "--data", data, "--out", str(run), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "here is not the data that", str(run))


def test_resuming_a_finished_run_is_quick_and_changes_nothing(
    command: tuple[str, ...],
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The data set is not loaded.
    monkeypatch.setattr("training.train.load_dataset", None)
    before = checksums(finished)
    begun = time.monotonic()
    assert main([*command, "--out", str(finished), "--resume"]) == 0
    assert time.monotonic() - begun < 5.0
    assert checksums(finished) == before
    output = capsys.readouterr()
    assert "complete already" in output.err
    elbo = json.loads((finished / "metrics.json").read_text())["elbo"]
    assert f"{elbo:.2f}" in output.out


def as_of_format_2(run: Path) -> None:
    """Rewrites a complete run as versions before wrote it: absolute limits, nothing centred."""
    config = json.loads((run / "config.json").read_text())
    for name in ("likelihood", "mixture"):
        del config["model"][name]
    for name in ("clip_factor", "skip_factor", "augment"):
        del config["train"][name]
    config["train"] |= {"clip_grad_norm": 200.0, "skip_grad_norm": 20_000.0}
    (run / "config.json").write_text(json.dumps(config | {"format": 2}))
    state = torch.load(run / "checkpoint.pt", weights_only=True)
    trainer = state["trainer"]
    for weights in (trainer["model"], trainer["average"]):
        for name in [name for name in weights if name.endswith("centre")]:
            del weights[name]
    trainer["optimizer"] = trainer["optimizer"]["adam"]
    torch.save(state | {"format": 2}, run / "checkpoint.pt")


def test_a_run_of_an_older_version_is_evaluated_but_not_resumed(
    tmp_path: Path, blobs_data: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    command = [*COMMAND, *blobs_data, "--set", "likelihood=bernoulli", "--out", str(run)]
    assert main(command) == 0
    new = RunFolder(run).load_model()
    as_of_format_2(run)
    old = RunFolder(run).load_model()
    assert old.centre.abs().max() == 0 < new.centre.abs().max()
    images = torch.rand(3, 1, 8, 8)
    # Its encoder saw images as they are.
    assert torch.equal(old.encode(images - new.centre).mean, new.encode(images).mean)
    assert RunFolder(run).read_config().model.likelihood == "bernoulli"
    (run / "metrics.json").unlink()
    before = checksums(run)
    capsys.readouterr()
    assert main([*command, "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "older version", "format 2", "exported and evaluated")
    assert checksums(run) == before


def test_a_run_from_before_a_term_of_conditional_models_is_resumed(
    command: tuple[str, ...], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((unfinished / "config.json").read_text())
    assert config["train"].pop("class_offset_weight") > 0
    (unfinished / "config.json").write_text(json.dumps(config))
    assert main([*command, "--out", str(unfinished), "--resume"]) == 0
    capsys.readouterr()
    (unfinished / "metrics.json").unlink()
    changed = [*command, "--set", "ema=0.5", "--set", "latent_dim=4"]
    assert main([*changed, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(
        capsys.readouterr().err,
        "has other settings",
        "; different: latent_dim 3, got 4, ema 0.999, got 0.5; wanted",
    )


def test_a_checkpoint_that_was_written_on_a_gpu_is_read_without_one(
    command: tuple[str, ...],
    unbroken: Path,
    unfinished: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = unfinished / "checkpoint.pt"
    state = torch.load(path, weights_only=True)
    with monkeypatch.context() as patch:
        # What torch calls the place of a tensor on the second GPU.
        patch.setattr("torch.serialization.location_tag", lambda _storage: "cuda:1")
        torch.save(state, path)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True)
    assert RunFolder(unfinished).load_model().centre.device.type == "cpu"
    assert main([*command, "--out", str(unfinished), "--resume"]) == 0
    assert_numbers_of(unbroken, unfinished)


class NotWeights:
    """A class that can be pickled and must not be unpickled from a checkpoint."""


def damaged(kind: str, path: Path, few: Dataset) -> None:
    raw = path.read_bytes()
    if kind == "cut short":
        path.write_bytes(raw[: len(raw) // 2])
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"not a checkpoint\n" * 10)
    elif kind == "zeros":
        path.write_bytes(bytes(len(raw)))
    elif kind == "flipped byte":
        with zipfile.ZipFile(path) as archive:
            weights = max((archive.read(name) for name in archive.namelist()), key=len)
        at = raw.index(weights) + len(weights) // 2
        path.write_bytes(raw[:at] + bytes([raw[at] ^ 0x10]) + raw[at + 1 :])
    elif kind == "code":
        torch.save({"format": FORMAT, "trainer": NotWeights()}, path)
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "parts missing":
        torch.save({"format": FORMAT}, path)
    elif kind == "other format":
        torch.save(torch.load(path, weights_only=True) | {"format": 99}, path)
    else:
        state = torch.load(path, weights_only=True)
        torch.save(state | {"trainer": trainer_of(few).state_dict()}, path)


@pytest.mark.parametrize(
    "kind",
    [
        "cut short", "empty", "text", "zeros", "flipped byte", "code", "a list", "parts missing",
        "other format", "another model",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_one_clear_line(
    kind: str,
    command: tuple[str, ...],
    unfinished: Path,
    few: Dataset,
    capsys: pytest.CaptureFixture[str],
) -> None:
    damaged(kind, unfinished / "checkpoint.pt", few)
    before = checksums(unfinished)
    assert main([*command, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "checkpoint.pt")
    assert checksums(unfinished) == before


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "", {"model": []}, {"model": None}, {"network": {"kind": "x"}},
                {"prior": "gmm"}, {"data": "mnist"}, {"train": {}}, {"format": 1}],
    ids=str,
)  # fmt: skip
def test_a_damaged_config_is_one_clear_line(
    content: str | dict[str, Any],
    command: tuple[str, ...],
    unfinished: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = unfinished / "config.json"
    if isinstance(content, dict):
        ((name, value),) = content.items()
        config = json.loads(path.read_text())
        (config if name in config else config["model"])[name] = value
        content = json.dumps(config)
    path.write_text(content)
    assert main([*command, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "config.json")


def test_out_that_is_a_file_is_one_clear_line(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*command, "--out", str(tmp_path / "file")]) == 1
    assert_one_line(capsys.readouterr().err, str(tmp_path / "file"))


def test_a_frame_with_a_wrong_checksum_is_refused(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.save_frame(1, "warm-up", np.zeros((4, 1, 2, 2), np.uint8), np.zeros((4, 2), np.float32))
    [frame] = tmp_path.rglob("*.npz")
    with np.load(frame) as arrays:
        np.savez(frame, **arrays)  # without compression
    content = frame.read_bytes()
    assert content.count(b"(4, 2)") == 1
    # NumPy alone reads this file as an array of three rows.
    frame.write_bytes(content.replace(b"(4, 2)", b"(3, 2)"))
    with pytest.raises(CheckpointError, match="its checksum is wrong"):
        run.read_frames()


def test_a_folder_in_use_is_refused_or_waited_for(tmp_path: Path) -> None:
    def lock(patience: float) -> float:
        began = time.monotonic()
        with RunFolder(tmp_path / "run").locked(patience):
            return time.monotonic() - began

    with ThreadPoolExecutor(1) as pool:
        with RunFolder(tmp_path / "run").locked():
            for patience in (0.0, 0.3):
                began = time.monotonic()
                with pytest.raises(CheckpointError, match="another training is running here"):
                    lock(patience)
                assert time.monotonic() - began >= patience
            waiting = pool.submit(lock, 60.0)
            time.sleep(0.3)
            assert not waiting.done()
        assert 0.2 < waiting.result(10) < 10
