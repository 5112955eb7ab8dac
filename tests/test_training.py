"""Training: runs that are killed, stopped, refused, that diverge, and their length."""

import dataclasses
import hashlib
import itertools
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_post_hook

from training.budget import calibrate, parse_duration
from training.cli import main
from training.datasets import Dataset, Split, load_dataset
from training.errors import ConfigError, DivergenceError
from training.loop import Trainer
from training.presets import ModelConfig, TrainConfig
from training.run import RunFolder
from training.train import Observer, Progress, Request, train

STEPS = 400
SMALL = ("--preset", "seed2d", "--set", "layers=64:relu")
COMMAND = (*SMALL, "--steps", str(STEPS))
# The last bits of the numbers depend on the threads; and more than one would only
# wait for each other where the CPUs are shared.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

# The program with checkpoints often enough to be killed between them, which kills
# itself in the middle of its Nth write to the disk where N is given.
DRIVER = """
import os, signal, sys
import training.train
from training.cli import main

training.train._CHECKPOINT_SECONDS = 0.2
left, really = int(os.environ.get("KILLED_IN_WRITE", "0")), os.fsync

def fsync(handle):
    global left
    left -= 1
    if left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    really(handle)

os.fsync = fsync
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def signal_handlers() -> Iterator[None]:
    """Puts back what `main` sets for the whole process."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went from its first to its last step in one go. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("unbroken") / "run"
    before = signal.getsignal(signal.SIGTERM)
    assert main([*COMMAND, "--out", str(folder)]) == 0
    signal.signal(signal.SIGTERM, before)
    return folder


@pytest.fixture
def finished(unbroken: Path, tmp_path: Path) -> Path:
    """A finished run to do things to."""
    shutil.copytree(unbroken, tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def unfinished(finished: Path) -> Path:
    """A run whose checkpoint is there and whose end is not."""
    (finished / "metrics.json").unlink()
    return finished


@pytest.fixture(scope="module")
def few() -> Dataset:
    """A little of MNIST."""
    whole = load_dataset("mnist")
    return dataclasses.replace(
        whole,
        train=Split(whole.train.images[:2000], whole.train.labels[:2000]),
        validation=Split(whole.validation.images[:100], whole.validation.labels[:100]),
    )


def trainer_of(dataset: Dataset, steps: int = 20, **changes: Any) -> Trainer:
    model = ModelConfig(layers=((32, "relu"),), latent_dim=2)
    return Trainer(model, TrainConfig(**changes), dataset, steps)


def checksums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def trainer_state(folder: Path) -> Any:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["trainer"]


def assert_same(one: Any, other: Any, where: str = "state") -> None:
    assert type(one) is type(other), where
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    elif isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}.{index}")
    else:
        assert one == other, where


def assert_numbers_of(unbroken: Path, run: Path) -> None:
    assert (run / "log.jsonl").read_text() == (unbroken / "log.jsonl").read_text()
    assert_same(trainer_state(run), trainer_state(unbroken))
    metrics, wanted = (json.loads((path / "metrics.json").read_text()) for path in (run, unbroken))
    for each in (metrics, wanted):
        del each["train_seconds_per_thread"]
    assert metrics == wanted
    name = "score_percentiles.json"
    assert (run / name).read_text() == (unbroken / name).read_text()


def start(run: Path, killed_in_write: int = 0) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, *COMMAND, "--out", str(run), "--resume"],
        env={**ONE_THREAD, "KILLED_IN_WRITE": str(killed_in_write)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def wait_for(what: Callable[[], bool], process: subprocess.Popen[Any]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert process.poll() is None, "it ended too early"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def logged_lines(run: Path) -> int:
    try:
        return (run / "log.jsonl").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def assert_one_line(text: str, *parts: str) -> None:
    """That all that was said is one line of the command's own, with these parts in it."""
    assert text.count("\n") == 1, text
    assert text.startswith("latentserve train: "), text
    for part in parts:
        assert part in text


def test_killed_again_and_again_it_resumes_to_the_numbers_of_the_unbroken_run(
    unbroken: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    # In the middle of writing its config, then of writing its first checkpoint.
    for write, cut in ((1, ".config.json."), (3, ".checkpoint.pt.")):
        assert start(run, killed_in_write=write).wait(60) == -signal.SIGKILL
        assert any(path.name.startswith(cut) for path in run.iterdir())
        assert not RunFolder(run).has_checkpoint
    # Somewhere on the way.
    for _ in range(2):
        process = start(run)
        begun = logged_lines(run)
        wait_for(lambda begun=begun: logged_lines(run) != begun, process)
        time.sleep(random.uniform(0.0, 0.6))
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
    assert RunFolder(run).has_checkpoint
    assert not RunFolder(run).complete
    assert start(run).wait(60) == 0
    assert_numbers_of(unbroken, run)


def signalling(real: Callable[..., Any], call: int) -> Callable[..., Any]:
    """Wraps `real` so that SIGTERM comes just before its `call`th call."""
    calls = itertools.count(1)

    def wrapped(*arguments: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments)

    return wrapped


@pytest.mark.parametrize("moment", ["update", "validation", "log"])
def test_stopped_in_the_middle_of_a_step_it_resumes_to_the_numbers_of_the_unbroken_run(
    moment: str,
    unbroken: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    hook = None
    if moment == "update":
        hook = register_optimizer_step_post_hook(signalling(lambda *_: None, 57))
    elif moment == "validation":
        monkeypatch.setattr(Trainer, "validate", signalling(Trainer.validate, 3))
    else:
        monkeypatch.setattr(RunFolder, "log", signalling(RunFolder.log, 30))
    try:
        assert main([*COMMAND, "--out", str(run)]) == 130
    finally:
        if hook is not None:
            hook.remove()
    monkeypatch.undo()
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("latentserve train: ")
    assert 0 < trainer_state(run)["step"] < STEPS
    assert main([*COMMAND, "--out", str(run), "--resume"]) == 0
    assert_numbers_of(unbroken, run)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_leaves_a_checkpoint_exit_130_and_how_to_resume(
    number: signal.Signals, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "latentserve", "train", *SMALL, "--steps", "20000", "--out", run],
        env=ONE_THREAD,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: logged_lines(run) >= 1, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    last = said.strip().splitlines()[-1]
    assert last.startswith("latentserve train: ")
    assert "--resume" in last
    assert "Traceback" not in said
    assert trainer_state(run)["step"] >= 100
    assert not RunFolder(run).complete


def test_a_run_that_is_there_is_not_written_over(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checksums(finished)
    for _ in range(2):
        assert main([*COMMAND, "--out", str(finished)]) == 1
        assert_one_line(capsys.readouterr().err, str(finished), "--resume")
        assert checksums(finished) == before
        # Unfinished it is refused as well.
        (finished / "metrics.json").unlink(missing_ok=True)
        before.pop("metrics.json", None)


def test_a_finished_run_without_its_checkpoint_is_no_answer_to_another_one(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (finished / "checkpoint.pt").unlink()
    before = checksums(finished)
    other = ("--preset", "dense", "--steps", "7")
    assert main([*other, "--out", str(finished)]) == 1
    assert_one_line(capsys.readouterr().err, str(finished))
    assert checksums(finished) == before


@pytest.mark.parametrize(
    "command",
    [
        (*SMALL, "--set", "beta=2", "--steps", str(STEPS)),
        (*SMALL, "--set", "latent_dim=3", "--steps", str(STEPS)),
        ("--preset", "dense", "--steps", str(STEPS)),
        (*SMALL, "--steps", str(STEPS + 1)),
        (*SMALL, "--steps", str(STEPS), "--data", "fashion-mnist"),
    ],
    ids=["beta", "latent_dim", "preset", "steps", "data"],
)
def test_resuming_with_other_settings_is_refused(
    command: tuple[str, ...], unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = checksums(unfinished)
    assert main([*command, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, str(unfinished), "wanted")
    assert checksums(unfinished) == before


def test_resuming_a_finished_run_is_quick_and_changes_nothing(
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Not even the data set is needed.
    monkeypatch.setenv("LATENTSERVE_DATA_DIR", str(finished / "nothing"))
    before = checksums(finished)
    begun = time.monotonic()
    assert main([*COMMAND, "--out", str(finished), "--resume"]) == 0
    assert time.monotonic() - begun < 2.0
    assert checksums(finished) == before
    said = capsys.readouterr()
    assert "complete already" in said.err
    elbo = json.loads((finished / "metrics.json").read_text())["elbo"]
    assert f"{elbo:.2f}" in said.out


class NotWeights:
    """What a pickle may hold and a checkpoint may not."""


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
        torch.save({"format": 1, "trainer": NotWeights()}, path)
    elif kind == "a list":
        torch.save([1, 2], path)
    elif kind == "parts missing":
        torch.save({"format": 1}, path)
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
    kind: str, unfinished: Path, few: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    damaged(kind, unfinished / "checkpoint.pt", few)
    before = checksums(unfinished)
    assert main([*COMMAND, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "checkpoint.pt")
    assert checksums(unfinished) == before


@pytest.mark.parametrize("content", ["{", "{}", "[]", ""])
def test_a_damaged_config_is_one_clear_line(
    content: str, unfinished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (unfinished / "config.json").write_text(content)
    assert main([*COMMAND, "--out", str(unfinished), "--resume"]) == 1
    assert_one_line(capsys.readouterr().err, "config.json")


def test_out_that_is_a_file_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    assert main([*COMMAND, "--out", str(tmp_path / "file")]) == 1
    assert_one_line(capsys.readouterr().err, str(tmp_path / "file"))


def test_subnormal_numbers_are_zero_while_it_trains_and_only_then(tmp_path: Path) -> None:
    """Adam's moments decay into them, and the second half of a run took twice as long."""
    smallest = torch.full((64,), 1e-39)
    during = []

    def note(_progress: Progress) -> None:
        during.append(bool((smallest * 1.0 == 0.0).all()))

    request = Request("seed2d", "mnist", tmp_path / "run", steps=2, budget=1.0,
                      settings=("layers=8:relu",))  # fmt: skip
    train(request, Observer(progress=note))
    assert during == [True, True]
    assert (smallest * 1.0 > 0.0).all()


@pytest.mark.parametrize("steps", ["0", "-5", "many"])
def test_what_is_no_number_of_steps_is_exit_2(
    steps: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--steps", steps, "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --steps: got {steps}, wanted a whole number from 1" in last


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--preset", "huge"), "preset: got 'huge', wanted one of"),
        (("--budget", "soon"), "budget: got 'soon', wanted a duration"),
        (("--budget", "0s"), "budget: got '0s', wanted a duration"),
        (("--set", "beta"), "--set: got 'beta', wanted"),
        (("--set", "beta=much"), "beta: got 'much', wanted a number"),
        (("--set", "ema=1"), "ema: got 1.0, wanted"),
        (("--set", "latent_dim=0"), "latent_dim: got 0, wanted 1 or more"),
        (("--set", "layers=8:swishy"), "activation: got 'swishy', wanted one of"),
        (("--set", "layers=0:relu"), "layers: got "),
    ],
    ids=" ".join,
)
def test_a_wrong_setting_is_exit_2_and_one_clear_line(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path / "run")]) == 2
    assert_one_line(capsys.readouterr().err, said)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--out"),
        (("--out", "run", "--steps", "many"), "--steps"),
        (("--out", "run", "--steps", "5", "--budget", "5s"), "--budget"),
        (("--out", "run", "--depth", "3"), "--depth"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("latentserve train: error: ")
    assert said in last


def test_an_unknown_data_set_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", "emnist", "--out", str(tmp_path / "run")]) != 0
    assert_one_line(capsys.readouterr().err, "'emnist'", "fashion-mnist, mnist")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("3m", 180), ("1.5h", 5400), ("0.5s", 0.5), (" 2m ", 120), ("007s", 7)],
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "-3m", "+3m", "3 m", "3d", "3min", "1e3s", "1.s", ".5s", "0s", "0.0h", "infs",
     "nans", "3m2s", "9" * 400 + "h"],
)  # fmt: skip
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ConfigError, match=r"budget: got .*, wanted a duration such as 90s"):
        parse_duration(text)


@settings(deadline=None)
@given(st.text(max_size=8) | st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,3})?[smh]", fullmatch=True))
def test_a_duration_is_finite_and_above_zero_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ConfigError:
        return
    assert 0 < seconds < math.inf


class Stop(Exception):
    """Raised by an observer that has seen enough."""


def steps_for(seconds: float, out: Path) -> int:
    """Has a run begun under a budget, and returns the number of steps it is to have."""

    def stop(_progress: Progress) -> NoReturn:
        raise Stop

    request = Request("seed2d", "mnist", out, None, seconds, settings=("layers=64:relu",))
    with pytest.raises(Stop):
        train(request, Observer(progress=stop))
    config = json.loads((out / "config.json").read_text())
    assert config["budget_seconds"] == seconds
    assert trainer_state(out)["total_steps"] == config["total_steps"]
    return int(config["total_steps"])


def test_a_budget_becomes_a_number_of_steps_that_grows_with_it(tmp_path: Path) -> None:
    few, many = steps_for(4, tmp_path / "few"), steps_for(12, tmp_path / "many")
    assert 1.5 < many / few < 6


def test_a_run_under_a_budget_takes_about_that_long(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, "--budget", "2s", "--out", str(tmp_path / "run")]) == 0
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["steps"] == config["total_steps"] > 10
    assert config["budget_seconds"] == 2
    assert 0.7 < metrics["train_seconds_per_thread"] < 6
    assert f"{config['total_steps']} steps" in capsys.readouterr().err


def test_calibration_leaves_the_trainer_as_it_is(few: Dataset) -> None:
    trainer = trainer_of(few)
    before = trainer.rehearsal().state_dict()
    assert calibrate(trainer, 0.2) >= 1
    assert_same(trainer.state_dict(), before)
    untouched = trainer_of(few)
    assert [trainer.train_step() for _ in range(3)] == [untouched.train_step() for _ in range(3)]


def test_a_run_that_diverges_stops_with_the_count_the_cause_and_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    diverging = (*SMALL, "--set", "learning_rate=1e12", "--steps", "200", "--out", str(run))
    for arguments in (diverging, (*diverging, "--resume")):
        assert main(list(arguments)) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said
        last = said.strip().splitlines()[-1]
        assert last.startswith("latentserve train: stopped at step ")
        for part in ("skipped", "max_skipped=50", "Remedy: ", "learning_rate", "1e+12"):
            assert part in last
    assert not RunFolder(run).complete


def poison(trainer: Trainer, step: int) -> None:
    """Puts a NaN into a gradient of one step."""
    trainer.model.to_mean.weight.register_hook(
        lambda grad: grad * math.nan if trainer.step == step else grad
    )


def test_a_nan_skips_exactly_its_own_step(few: Dataset) -> None:
    trainer = trainer_of(few)
    poison(trainer, step=5)
    for step in range(12):
        before = trainer.rehearsal().state_dict()
        numbers = trainer.train_step()
        after = trainer.state_dict()
        moved = any(
            not torch.equal(before["model"][key], weights)
            for key, weights in after["model"].items()
        )
        assert moved == (step != 5)
        assert all(torch.isfinite(weights).all() for weights in after["model"].values())
        assert numbers["skipped"] == trainer.skipped == (step >= 5)
        assert math.isfinite(numbers["grad_norm"]) == (step != 5)
        if step == 5:
            assert_same(after["average"], before["average"])
            assert_same(after["optimizer"], before["optimizer"])
    assert trainer.step == 12


def test_a_skipped_step_is_in_the_log_and_the_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.__init__

    def init(trainer: Trainer, *arguments: Any) -> None:
        real(trainer, *arguments)
        poison(trainer, step=5)

    monkeypatch.setattr(Trainer, "__init__", init)
    request = Request("seed2d", "mnist", tmp_path / "run", 20, 0.0, settings=("layers=16:relu",))
    assert train(request, Observer())["skipped_steps"] == 1

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [entry["skipped"] for entry in entries] == [0] * 5 + [1] * 15


@pytest.mark.parametrize("allowed", [0, 3])
def test_more_skipped_steps_than_allowed_stop_the_run(allowed: int, few: Dataset) -> None:
    trainer = trainer_of(few, max_skipped=allowed, skip_grad_norm=1e-6)
    for _ in range(allowed):
        trainer.train_step()
    with pytest.raises(DivergenceError, match=f"{allowed + 1} steps were skipped"):
        trainer.train_step()
    assert trainer.step == trainer.skipped == allowed + 1


def test_seed_decides_the_numbers(few: Dataset) -> None:
    def numbers(seed: int) -> list[dict[str, float]]:
        trainer = trainer_of(few, seed=seed)
        return [trainer.train_step() for _ in range(4)]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def test_schedule_rises_then_falls_and_the_kl_weight_rises_to_beta(few: Dataset) -> None:
    trainer = trainer_of(few, 50, beta=4.0, warmup=0.2, kl_warmup=0.5, learning_rate=0.01)
    numbers = [trainer.train_step() for _ in range(50)]
    rates = [each["learning_rate"] for each in numbers]
    top = rates.index(max(rates))
    assert 5 <= top <= 10
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.001 < max(rates) <= 0.01
    betas = [each["beta"] for each in numbers]
    assert betas == sorted(betas)
    assert betas[0] < 0.5
    assert betas[25:] == [4.0] * 25


def test_training_learns_and_its_log_adds_up(unbroken: Path) -> None:
    entries = [json.loads(line) for line in (unbroken / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries][-1] == STEPS
    for entry in entries:
        assert entry["elbo"] == pytest.approx(entry["reconstruction"] + entry["kl"], rel=1e-6)
    validations = [entry["validation_elbo"] for entry in entries if "validation_elbo" in entry]
    assert len(validations) == 20
    assert validations[-1] < 200 < 400 < entries[0]["elbo"]
    metrics = json.loads((unbroken / "metrics.json").read_text())
    assert abs(metrics["elbo"] - validations[-1]) < 5


def test_golden_inputs_are_test_images_of_every_class(unbroken: Path) -> None:
    images, labels = RunFolder(unbroken).read_golden_inputs()
    assert images.shape == (16, 1, 28, 28)
    assert set(labels.tolist()) == set(range(10))
    test = load_dataset("mnist").test
    for image, label in zip(images, labels, strict=True):
        (places,) = (test.images == image).all(axis=(1, 2, 3)).nonzero()
        assert label in test.labels[places]
