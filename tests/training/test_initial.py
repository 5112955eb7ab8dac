"""A run that begins with the weights of another one."""

import dataclasses
import hashlib
import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.tiny_runs import (
    ONE_THREAD,
    PHASES,
    TOTAL,
    assert_one_line,
    assert_same,
    trainer_of,
    trainer_state,
)
from training.cli import main
from training.data.datasets import Dataset
from training.errors import CheckpointError
from training.initial import begin_with
from training.model.config import Conv
from training.model.vae import Vae
from training.parallel import Parallel
from training.run_config import Init
from training.run_folder import RunFolder

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread", "no_pictures", "signal_handlers")

#: Settings of a run that goes on where another one ended: its prior is not fitted anew.
ON = ("--set", "prior_start=0", "--set", "prior_fit=0", "--set", "kl_warmup=0")
MORE = ("--set", "prior.couplings=8")


def outputs(model: Vae) -> list[torch.Tensor]:
    noise = torch.Generator().manual_seed(0)
    images = torch.rand(7, *model.image_shape, generator=noise)
    z = torch.randn(7, model.config.latent_dim, generator=noise)
    assert model.prior is not None
    with torch.no_grad():
        posterior = model.encode(images)
        assert posterior.log_var is not None
        return [posterior.mean, posterior.log_var, model.decode(z), model.prior.log_prob(z)]


def assert_close(one: Vae, other: Vae) -> None:
    for mine, theirs in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(mine, theirs)


def test_a_run_begins_with_the_averaged_weights_of_another_and_says_which(
    command: tuple[str, ...],
    unbroken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    arguments = [*command, *ON, *MORE, "--init", str(unbroken), "--out", str(run)]
    assert main(arguments) == 0
    assert (
        f"beginning with the weights of {unbroken} after {TOTAL} steps" in capsys.readouterr().err
    )
    digest = hashlib.sha256((unbroken / "checkpoint.pt").read_bytes()).hexdigest()
    assert RunFolder(run).read_config().init == Init(str(unbroken), digest, TOTAL)
    assert RunFolder(unbroken).read_config().init is None
    first, last = (RunFolder(path).read_log()[place] for path, place in ((run, 0), (unbroken, -1)))
    assert first["phase"] == "joint"
    assert first["validation_elbo" if "validation_elbo" in first else "elbo"] == pytest.approx(
        last["validation_elbo"], abs=3
    )


def test_further_couplings_change_nothing_at_first(unbroken: Path, few: Dataset) -> None:
    there = RunFolder(unbroken).load_model()
    prior = dataclasses.replace(there.config.prior, couplings=9)
    model = dataclasses.replace(there.config, prior=prior)
    trainer = trainer_of(few, 20, model, **PHASES, binarize=False)
    begin_with(unbroken, trainer, Parallel())
    assert_same(dict(trainer.model.state_dict()), dict(trainer.ema_model.state_dict()))
    assert_close(trainer.model, there)
    numbers = trainer.train_step()
    assert all(map(torch.isfinite, map(torch.tensor, numbers.values())))


def test_further_blocks_change_nothing_at_first_and_the_data_keeps_its_centre(
    blobs_data: tuple[str, str], few: Dataset, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    small = [
        "--preset", "conv", "--steps", "3", "--set", "patch=1", "--set", "coarsest=4",
        "--set", "widths=6,4", "--set", "encoder_trunk=8", "--set", "decoder_trunk=8",
        "--set", "latent_dim=3", "--set", "prior.components=6",
    ]  # fmt: skip
    assert main([*blobs_data, *small, "--out", str(run)]) == 0
    there = RunFolder(run).load_model()
    assert isinstance(there.config.network, Conv)
    network = dataclasses.replace(
        there.config.network, encoder_blocks=(4, 2), decoder_blocks=(2, 3)
    )
    model = dataclasses.replace(there.config, network=network)
    trainer = trainer_of(few, 20, model, **PHASES, binarize=False)
    trainer.model.centre.fill_(0.25)
    begin_with(run, trainer, Parallel())
    for begun in (trainer.model, trainer.ema_model):
        assert begun.centre.item() == 0.25
        begun.centre.copy_(there.centre)
        assert_close(begun, there)


@pytest.mark.slow
def test_a_killed_run_goes_on_without_the_run_that_it_began_with(
    command: tuple[str, ...], unbroken: Path, tmp_path: Path
) -> None:
    source, whole, killed = tmp_path / "source", tmp_path / "whole", tmp_path / "killed"
    shutil.copytree(unbroken, source)
    late = ("--set", "objective=iwae", "--set", "draws=3", "--set", "iwae_from=0.4")
    images = ("--set", "augment=warp", "--set", "augment_until=0.6", "--set", "gradient=path")
    arguments = [*command, *ON, *MORE, *late, *images]
    begun = ["--init", str(source)]
    assert main([*arguments, *begun, "--out", str(whole)]) == 0
    for step in (13, 20, 29):  # with one draw, with three, and on images as they are
        interrupted = subprocess.run(
            [
                sys.executable, "-m", "tests.support.interrupted", *arguments, *begun,
                "--out", str(killed), "--resume",
            ],
            env=ONE_THREAD | {"CHECKPOINT_EVERY": "6", "KILL_AT": str(step)},
            capture_output=True,
            check=False,
        )  # fmt: skip
        assert interrupted.returncode == -signal.SIGKILL
        assert trainer_state(killed)["step"] == step // 6 * 6
        if source.exists():
            shutil.rmtree(source)
    assert main([*arguments, "--out", str(killed), "--resume"]) == 0
    assert_same(trainer_state(killed), trainer_state(whole))
    assert (killed / "log.jsonl").read_text() == (whole / "log.jsonl").read_text()


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("--set", "layers=17:relu"), ["encoder.", "shape [17", "wanted [16"]),
        (("--set", "prior.couplings=1"), ["prior.flow.1.", "got shape none here"]),
        (("--set", "prior.components=3"), ["prior.", "got shape [3"]),
        (("--set", "prior.kind=gmm"), ["prior.flow.0.", "got shape none here"]),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_weights_that_have_no_place_are_one_clear_line(
    settings: tuple[str, ...],
    parts: list[str],
    command: tuple[str, ...],
    unbroken: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = [*command, *settings, "--init", str(unbroken), "--out", str(tmp_path / "run")]
    assert main(arguments) == 2
    error = capsys.readouterr().err.splitlines()[-1] + "\n"
    assert_one_line(error, "--init: ", str(unbroken), "more blocks and couplings", *parts)
    assert not RunFolder(tmp_path / "run").has_checkpoint


def test_a_folder_without_a_run_is_one_clear_line(
    command: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "missing"
    assert main([*command, "--init", str(missing), "--out", str(tmp_path / "run")]) == 1
    assert_one_line(capsys.readouterr().err, str(missing), "no config.json")


def test_resuming_with_another_run_to_begin_with_is_refused(
    command: tuple[str, ...], unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(unbroken, run)
    (run / "metrics.json").unlink()
    arguments = [*command, "--init", str(unbroken), "--out", str(run), "--resume"]
    assert main(arguments) == 1
    assert_one_line(capsys.readouterr().err, str(run), "random weights", f"--init {unbroken}")


@pytest.mark.parametrize(
    ("init", "wanted"),
    [(None, None), ({"run": "runs/a", "sha256": "0f", "step": 9}, Init("runs/a", "0f", 9))],
)
def test_a_config_says_which_run_it_began_with_or_none(
    init: Any, wanted: Init | None, unbroken: Path, tmp_path: Path
) -> None:
    config = json.loads((unbroken / "config.json").read_text())
    del config["init"]  # as versions before wrote it
    if init is not None:
        config["init"] = init
    read = RunFolder(tmp_path)
    read.write_json("config.json", config)
    assert read.read_config().init == wanted


@pytest.mark.parametrize("damaged", [{"run": "runs/a"}, ["runs/a"], {"path": 3}])
def test_a_damaged_record_of_it_is_one_clear_error(
    damaged: Any, unbroken: Path, tmp_path: Path
) -> None:
    config = json.loads((unbroken / "config.json").read_text())
    read = RunFolder(tmp_path)
    read.write_json("config.json", config | {"init": damaged})
    with pytest.raises(CheckpointError, match=r"config\.json: damaged"):
        read.read_config()
