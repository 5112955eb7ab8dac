"""`latentserve train`: its options, errors, progress, budget, and the run folder it leaves."""

import itertools
import json
import math
import os
import platform
import pty
import re
import signal
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.support.blobs import draw_blobs
from tests.support.processes import latentserve
from tests.support.shared import cached, made_once
from tests.support.tiny_runs import (
    ONE_THREAD,
    SMALL,
    STEPS,
    TOTAL,
    assert_one_line,
    trainer_state,
)
from tests.training.test_trainer import poison
from training.budget import parse_duration
from training.cli import main
from training.data.datasets import load_dataset
from training.data.spec import DataSpec
from training.errors import ConfigError
from training.model.vae import Vae
from training.progress import Observer, Progress
from training.report.collect import FRAMES
from training.report.write import LIVE, PAGE, PICTURES
from training.run_folder import RunFolder
from training.train import Request, has_bfloat16, train
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures", "signal_handlers")

MNIST = ("--preset", "dense-gmm", "--set", "prior.kind=flow-gmm", "--set", "layers=128:relu",
         "--set", "latent_dim=10", "--set", "prior.components=20", "--set", "prior.width=32",
         "--set", "prior_fit=0.1534", "--data", "mnist", "--steps", "300")  # fmt: skip
CONV = ("--preset", "conv", "--set", "widths=8,4", "--set", "encoder_trunk=16",
        "--set", "decoder_trunk=16", "--set", "latent_dim=3", "--set", "prior.components=6",
        "--set", "prior.width=8", "--steps", "8")  # fmt: skip


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on MNIST with all phases."""

    def make(folder: Path) -> None:
        before = signal.getsignal(signal.SIGTERM)
        assert main([*MNIST, "--out", str(folder / "run")]) == 0
        signal.signal(signal.SIGTERM, before)

    return made_once(tmp_path_factory, "real", cached("real", make)) / "run"


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of the real command on a folder of colour pictures, and its stdout."""

    def make(folder: Path) -> None:
        images, labels = draw_blobs(150, 32, channels=3)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            path = folder / "pictures" / f"class {label}" / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(path)
        done = latentserve("train", *CONV, "--data", f"folder:{folder / 'pictures'}", "--out",
                           folder / "run", env={"OMP_NUM_THREADS": "1"})  # fmt: skip
        assert done.returncode == 0, done.stderr
        (folder / "stdout").write_text(done.stdout)

    folder = made_once(tmp_path_factory, "colour", cached("colour", make))
    return folder / "run", (folder / "stdout").read_text()


def request_of(blobs_data: tuple[str, str], out: Path, **changes: Any) -> Request:
    return Request(
        **{  # type: ignore[arg-type]
            "preset": "dense",
            "data": DataSpec.parse(blobs_data[1]),
            "out": out,
            "steps": 20,
            "budget": 1.0,
            "settings": ("layers=16:relu", "batch_size=32"),
            "device": "cpu",
        }
        | changes
    )


def test_subnormal_numbers_are_flushed_to_zero_during_training_only(
    blobs_data: tuple[str, str], tmp_path: Path
) -> None:
    """Adam's moments decay into subnormals, which made the second half of a run twice as slow."""
    smallest = torch.full((64,), 1e-39)
    during = []

    def note(_progress: Progress) -> None:
        during.append(bool((smallest * 1.0 == 0.0).all()))

    train(request_of(blobs_data, tmp_path / "run", steps=2), Observer(progress=note))
    assert during == [True, True]
    assert (smallest * 1.0 > 0.0).all()


def test_progress_covers_all_steps_and_ends_with_no_time_left(
    command: tuple[str, ...], blobs_data: tuple[str, str], tmp_path: Path
) -> None:
    received: list[Progress] = []
    changes = tuple(argument for argument in command if "=" in argument)
    request = request_of(
        blobs_data, tmp_path / "run", preset="dense-gmm", steps=STEPS, settings=changes
    )
    train(request, Observer(progress=received.append))
    assert [progress.step for progress in received] == list(range(1, TOTAL + 1))
    assert list(dict.fromkeys(progress.phase for progress in received)) == [
        "autoencoder", "prior fit", "joint", "prior refit",
    ]  # fmt: skip
    for progress in received:
        assert progress.total_steps == TOTAL
        assert 0 < progress.share <= 1
        assert 0 <= progress.seconds_left < 600
        assert progress.rows_per_second > 0
        assert ("prior_nll" in progress.numbers) == progress.phase.startswith("prior")
    assert (received[-1].share, received[-1].seconds_left) == (1.0, 0.0)


def test_progress_lines_are_printed_where_stderr_is_no_terminal(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("latentserve._cli.progress._LINE_SECONDS", 0.0)
    assert main([*command, "--out", str(tmp_path / "run")]) == 0
    lines = capsys.readouterr().err.splitlines()
    progress = [line for line in lines if " left" in line]
    assert len(progress) == TOTAL
    number = r"-?[\d.]+"
    for line in progress:
        assert re.fullmatch(
            rf" *\d+% (autoencoder|prior fit|joint|prior refit) \d+/{TOTAL} "
            rf"(ELBO {number} rec {number} KL {number}|-log p\(z\) {number})"
            rf"( val {number})? \d+/s, [\d:]+ left",
            line,
        ), line
    assert progress[-1].startswith("100% prior refit 60/60 ")
    # The slow first step of a fit of the prior is announced.
    begun = [line for line in lines if "encoding" in line]
    assert [line.partition(":")[0] for line in begun] == ["prior fit", "prior refit"]


@pytest.mark.slow
def test_a_terminal_shows_a_progress_bar_until_ctrl_c(
    blobs_data: tuple[str, str], tmp_path: Path
) -> None:
    """In 80 columns, with the time left."""
    screen, terminal = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.interrupted", *SMALL, *blobs_data, "--steps", "20000",
         "--out", tmp_path / "run"],
        env=ONE_THREAD,
        stderr=terminal,
    )  # fmt: skip
    os.close(terminal)
    output = b""
    try:
        while chunk := os.read(screen, 65536):
            output += chunk
            if output.count(b" val ") == 5:
                process.send_signal(signal.SIGINT)
    except OSError:  # Linux reports a closed pseudo-terminal so
        pass
    finally:
        os.close(screen)
    assert process.wait(60) == 130
    assert trainer_state(tmp_path / "run")["step"] >= 1
    assert not RunFolder(tmp_path / "run").complete
    lines = [line for line in output.decode().replace("\r", "\n").split("\n") if line.strip()]
    assert lines[-1].startswith("latentserve train: stopped; the same command with --resume")
    progress = [line for line in lines if "ELBO" in line]
    assert len(progress) >= 5
    for line in progress:
        assert len(line) <= 80, line
        assert re.search(r"^ +\d+% \|.*\| autoencoder ELBO [\d.]+ rec [\d.]+ KL [\d.]+ ", line), (
            line
        )
        assert re.search(r" \d+/s, [\d:]+ left$", line), line
    assert "Traceback" not in output.decode()


@pytest.mark.parametrize("steps", ["0", "-5", "many"])
def test_an_invalid_number_of_steps_is_exit_2(
    steps: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--steps", steps, "--out", str(tmp_path / "run")])
    assert caught.value.code == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert f"argument --steps: got {steps}, wanted a whole number from 1" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--preset", "huge"), "preset: got 'huge', wanted one of"),
        (("--budget", "soon"), "budget: got 'soon', wanted a duration"),
        (("--budget", "0s"), "budget: got '0s', wanted a duration"),
        (("--set", "beta"), "--set: got 'beta', wanted"),
        (("--set", "beta=much"), "beta: got 'much', wanted a number"),
        (("--set", "ema=1"), "ema: got 1.0, wanted"),
        (("--set", "latent_dim=0"), "latent_dim: got 0, wanted 1 to 65536"),
        (("--set", "prior.kind=vamp"), "prior.kind: got 'vamp', wanted one of none, standard"),
        (("--set", "posterior=delta"), "prior.kind: got standard, wanted none, gmm, flow"),
        (("--set", "layers=99999999999:relu"), "layers: got "),
        (("--device", "tpu"), "device: got 'tpu', wanted auto, cpu, cuda or cuda:N"),
        (("--image-size", "5000"), "image_size: got (5000, 5000), wanted"),
        (("--set", "layers=8:swishy"), "activation: got 'swishy', wanted one of"),
        (("--set", "layers=0:relu"), "layers: got "),
    ],
    ids=" ".join,
)
def test_a_wrong_setting_is_exit_2_and_one_clear_line(
    arguments: tuple[str, ...],
    message: str,
    blobs_data: tuple[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    preset = [] if "--preset" in arguments else ["--preset", "dense"]
    assert main([*blobs_data, *preset, *arguments, "--out", str(tmp_path / "run")]) == 2
    assert_one_line(capsys.readouterr().err, message)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("has", [True, False])
def test_bfloat16_without_instructions_for_it_is_noted(
    has: bool,
    blobs_data: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("training.train.has_bfloat16", lambda _device: has)
    options = ["--preset", "dense", *SMALL, "--steps", "2", "--out", str(tmp_path / "run")]
    assert main([*blobs_data, *options, "--precision", "bfloat16"]) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == (
        []
        if has
        else [
            "note: --precision bfloat16: this CPU has no instructions for it, so that a step takes "
            "several times as long as in float32"
        ]
    )


@pytest.mark.skipif(platform.machine() != "x86_64", reason="not an x86-64 CPU")
def test_torch_needs_avx512_for_bfloat16() -> None:
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert has_bfloat16(torch.device("cpu")) == (
        not flags.isdisjoint({"avx512bw", "avx_ne_convert"})
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "--out"),
        (("--out", "run", "--steps", "many"), "--steps"),
        (("--out", "run", "--steps", "5", "--budget", "5s"), "--budget"),
        (("--out", "run", "--depth", "3"), "--depth"),
        (("--out", "run", "--precision", "int8"), "--precision"),
        (("--out", "run", "--channels", "2"), "--channels"),
        (("--out", "run", "--image-size", "0"), "--image-size: got 0, wanted a whole number"),
    ],
)
def test_a_wrong_command_line_is_exit_2_and_says_what_is_wrong(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("latentserve train: error: ")
    assert message in last


def test_an_unknown_data_set_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", "emnist", "--out", str(tmp_path / "run")]) != 0
    assert_one_line(capsys.readouterr().err, "'emnist'", "fashion-mnist, mnist")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has one")
@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_a_missing_gpu_is_refused(
    device: str, blobs_data: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*blobs_data, "--device", device, "--out", str(tmp_path / "run")]) == 2
    assert_one_line(capsys.readouterr().err, f"device: got '{device}', wanted cpu or auto")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("3m", 180), ("1.5h", 5400), ("0.5s", 0.5), (" 2m ", 120), ("007s", 7)],
)
def test_durations_are_parsed_to_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", "90", "s", "-3m", "+3m", "3 m", "3d", "3min", "1e3s", "1.s", ".5s", "0s", "0.0h", "infs",
     "nans", "3m2s", "9" * 400 + "h"],
)  # fmt: skip
def test_invalid_durations_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"budget: got .*, wanted a duration such as 90s"):
        parse_duration(text)


@given(st.text(max_size=8) | st.from_regex(r"[0-9]{1,5}(\.[0-9]{1,3})?[smh]", fullmatch=True))
def test_a_duration_is_finite_and_above_zero_or_refused(text: str) -> None:
    try:
        seconds = parse_duration(text)
    except ConfigError:
        return
    assert 0 < seconds < math.inf


class Stop(Exception):
    """Raised by an observer to end a run."""


def steps_for(seconds: float, out: Path, blobs_data: tuple[str, str], preset: str = "dense") -> int:
    """Begins a run under a budget; returns the number of steps that it was given."""

    def stop(_progress: Progress) -> NoReturn:
        raise Stop

    settings = ("layers=16:relu", "batch_size=32", "prior.components=4", "prior_batch_size=32")
    request = request_of(
        blobs_data, out, preset=preset, steps=None, budget=seconds, settings=settings
    )
    with pytest.raises(Stop):
        train(request, Observer(progress=stop))
    config = RunFolder(out).read_config()
    assert config.budget_seconds == seconds
    assert trainer_state(out)["steps"] == config.steps
    return config.steps


@pytest.mark.parametrize("preset", ["dense", "dense-gmm"])
@pytest.mark.slow
def test_a_budget_becomes_a_number_of_steps_that_grows_with_it(
    preset: str, blobs_data: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock that each look at it moves on: another process would distort a real one."""
    clock = itertools.count()
    monkeypatch.setattr("training.budget.cpu_seconds", lambda: 1e-3 * next(clock))
    few = steps_for(2, tmp_path / "few", blobs_data, preset)
    many = steps_for(8, tmp_path / "many", blobs_data, preset)
    assert 3.5 < many / few < 4.5


def test_a_run_under_a_budget_takes_about_that_long(
    blobs_data: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ("--preset", "dense", "--set", "layers=64:relu")
    prior = ("--set", "prior.kind=gmm", "--set", "prior.components=6")
    assert main([*blobs_data, *small, *prior, "--budget", "2s", "--out", str(run)]) == 0
    config = json.loads((run / "config.json").read_text())
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["steps"] == config["steps"] > 10
    assert config["budget_seconds"] == 2
    assert 0.7 < metrics["train_seconds_per_thread"] < 6
    assert f"{config['steps']} steps" in capsys.readouterr().err


def test_a_diverging_run_stops_with_the_count_of_skipped_steps_and_a_remedy(
    blobs_data: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    diverging = (
        *SMALL,
        *blobs_data,
        "--set",
        "learning_rate=1e12",
        "--steps",
        "200",
        "--out",
        str(run),
    )
    for arguments in (diverging, (*diverging, "--resume")):
        assert main(list(arguments)) == 1
        lines = capsys.readouterr().err
        assert "Traceback" not in lines
        last = lines.strip().splitlines()[-1]
        assert last.startswith("latentserve train: stopped at step ")
        for part in ("skipped", "max_skipped=50", "Remedy: ", "learning_rate=0.001", "1e+12"):
            assert part in last
    assert not RunFolder(run).complete


def test_a_skipped_step_is_in_the_log_and_the_metrics(
    blobs_data: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Trainer.__init__

    def init(trainer: Trainer, *arguments: Any, **options: Any) -> None:
        real(trainer, *arguments, **options)
        poison(trainer, step=5)

    monkeypatch.setattr(Trainer, "__init__", init)
    assert train(request_of(blobs_data, tmp_path / "run"), Observer())["skipped_steps"] == 1

    def refuse(constant: str) -> NoReturn:
        raise AssertionError(f"{constant} is not JSON")

    lines = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    entries = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [entry["skipped"] for entry in entries] == [0] * 5 + [1] * 15


def test_a_real_run_learns_and_its_log_adds_up(real: Path) -> None:
    entries = RunFolder(real).read_log()
    assert entries[-1]["step"] == 300 + 46 + 90
    for entry in entries:
        if "elbo" in entry:
            assert entry["elbo"] == pytest.approx(entry["reconstruction"] + entry["kl"], rel=1e-6)
    last = {}
    for entry in entries:
        if "validation_elbo" in entry:
            last[entry["phase"]] = entry
    assert list(last) == ["autoencoder", "prior fit", "joint", "prior refit"]
    elbos = [entry["validation_elbo"] for entry in last.values()]
    # Every phase improves the ELBO, and the fit of the prior the KL by several nats.
    assert elbos == sorted(elbos, reverse=True)
    assert last["prior fit"]["validation_kl"] < last["autoencoder"]["validation_kl"] - 3
    assert elbos[-1] < 145 < 400 < entries[0]["elbo"]
    metrics = json.loads((real / "metrics.json").read_text())
    assert abs(metrics["elbo"] - elbos[-1]) < 5
    assert metrics["elbo"] == pytest.approx(metrics["reconstruction"] + metrics["kl"])
    assert metrics["active_units"] == 10
    assert metrics["steps"] == 300


def test_a_run_writes_its_report_and_then_its_metrics(colour: tuple[Path, str]) -> None:
    run, printed = colour
    written = {path.name: path.stat().st_mtime_ns for path in run.iterdir()}
    assert {*PICTURES, PAGE} - {"latent_plane.png"} <= set(written)
    assert LIVE not in written
    assert max(written, key=lambda name: written[name]) == "metrics.json"
    assert not list(run.rglob(".*.tmp"))
    with Image.open(run / "samples_by_class.png") as picture:
        assert picture.mode == "RGB"
        assert np.asarray(picture).std() > 10
    elbo = json.loads((run / "metrics.json").read_text())["elbo"]
    first, second = printed.splitlines()
    assert first.startswith(f"test ELBO {elbo:.2f} nats = reconstruction ")
    assert second == f"run folder: {run}"


def test_frames_are_limited_in_number_and_include_the_first_and_last_step(
    real: Path, unbroken: Path
) -> None:
    steps = [frame["step"] for frame in RunFolder(real).read_frames()]
    assert FRAMES < len(steps) <= 2 * FRAMES
    # One at every third of the autoencoder's 300 steps, none in the 46 of the prior fit.
    assert steps == [*range(0, 99, 3), *range(145, 346, 3), 436]
    # In a run of fewer steps than frames, one before each step of the autoencoder, and the last.
    frames = RunFolder(unbroken).read_frames()
    assert [frame["step"] for frame in frames] == [*range(20), *range(30, 50), TOTAL]
    assert (frames[0]["phase"], frames[-1]["phase"]) == ("autoencoder", "prior refit")
    assert frames[0]["reconstructions"].shape == (16, 1, 8, 8)
    assert frames[0]["means"].shape == (40, 3)


def test_the_model_loaded_from_a_run_is_the_averaged_one(unbroken: Path) -> None:
    model = RunFolder(unbroken).load_model()
    average = trainer_state(unbroken)["average"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, average[f"module.{name}"])
    assert isinstance(model, Vae)
    assert not model.training
    assert model.labels == 3


def test_golden_inputs_are_test_images_of_every_class(real: Path) -> None:
    images, labels = RunFolder(real).read_golden_inputs()
    assert images.shape == (16, 1, 28, 28)
    assert set(labels.tolist()) == set(range(10))
    test = load_dataset("mnist").test
    for image, label in zip(images, labels, strict=True):
        (places,) = (test.images == image).all(axis=(1, 2, 3)).nonzero()
        assert label in test.labels[places]


def test_training_on_a_folder_of_colour_pictures(
    colour: tuple[Path, str],
) -> None:
    run = RunFolder(colour[0])
    config = run.read_config()
    assert config.image_shape == (3, 32, 32)
    assert config.class_names == ("class 0", "class 1", "class 2")
    assert run.load_model().labels == 3
    assert run.read_frames()[0]["reconstructions"].shape[1:] == (3, 32, 32)
    assert run.read_golden_inputs()[0].shape[1:] == (3, 32, 32)
    log = run.read_log()
    elbos = [entry["validation_elbo"] for entry in log if "validation_elbo" in entry]
    assert elbos[-1] < elbos[0]


def test_a_plain_autoencoder_says_that_it_has_no_elbo(
    blobs_data: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    small = ("--set", "layers=16:relu", "--steps", "5", "--out", str(run))
    assert main(["--preset", "autoencoder", *blobs_data, *small]) == 0
    output = capsys.readouterr().out
    reconstruction = json.loads((run / "metrics.json").read_text())["reconstruction"]
    assert output.startswith(f"test reconstruction {reconstruction:.2f} nats (40 images, ")
    assert "ELBO" not in output.replace("no ELBO", "")
