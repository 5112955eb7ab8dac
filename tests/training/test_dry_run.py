"""`train --dry-run`, and the preset that is picked where none is named."""

import json
from pathlib import Path

import pytest
import torch

from tests.support.blobs import write_blobs
from tests.support.tiny_runs import MODEL, SMALL, assert_one_line
from training.budget import _time_steps
from training.cli import main
from training.model.config import Conv, Dense, ModelConfig, PriorConfig
from training.model.networks import count_multiply_adds
from training.model.vae import Vae
from training.outline import layers
from training.presets import PRESETS, suggest_preset
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread", "signal_handlers")


@pytest.mark.parametrize(
    "model",
    [
        MODEL,
        ModelConfig(Conv((8, 4), (1,), (0, 1), 16, 16), 5, prior=PriorConfig("gmm", components=4)),
        ModelConfig(Dense(((9, "relu"),)), 2, posterior="delta", prior=PriorConfig("none")),
    ],
    ids=["flow-gmm", "conv", "plain"],
)
@pytest.mark.parametrize("shape", [(3, 9, 20), (1, 28, 28)])
def test_the_layers_have_all_weights_and_all_multiply_adds(
    model: ModelConfig, shape: tuple[int, int, int]
) -> None:
    vae = Vae(model, shape, 3)
    found = layers(vae)
    assert sum(layer.parameters for layer in found) == sum(map(torch.numel, vae.parameters()))
    z = torch.zeros(1, model.latent_dim)
    for part, example in ((vae.encoder, torch.zeros(1, *shape)), (vae.decoder, z)):
        [name] = [name for name, module in vae.named_modules() if module is part]
        counted = sum(layer.multiply_adds for layer in found if layer.name.startswith(name))
        assert counted == count_multiply_adds(part, example)
    names = [layer.name for layer in found]
    assert len(set(names)) == len(names)
    assert names.index("to_mean") < names.index(
        next(name for name in names if name.startswith("decoder"))
    )


def test_a_dry_run_says_what_would_be_trained_and_writes_nothing(
    blobs_data: tuple[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([*SMALL, *blobs_data, "--steps", "40", "--dry-run", "--out", "run"]) == 0
    assert list(tmp_path.iterdir()) == []
    printed = capsys.readouterr().out
    for part in (
        "324 images to train on", "8 x 8 grey, 3 classes", "dense-gmm", "3 dimensions",
        "32 images", "MiB", "10 steps", "40 steps of the autoencoder, 4.0 epochs",
        "20 of the prior",
        "encoder.1", "to_scale", "multiply-adds", "total",
    ):  # fmt: skip
        assert part in printed


def test_a_short_run_is_timed_in_the_phases_that_it_has(
    blobs_data: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that are timed would leave the phases of a run of a few steps."""
    timed = []

    def time_steps(trainer: Trainer, seconds: float) -> float:
        before = trainer.phase.name
        mean = _time_steps(trainer, seconds)
        timed.append((before, trainer.phase.name))
        return mean

    monkeypatch.setattr("training.budget._time_steps", time_steps)
    options = ["--steps", "4", "--set", "train_on_validation=true", "--dry-run"]
    assert main([*SMALL, *blobs_data, *options]) == 0
    assert len({before for before, _ in timed}) == 4
    assert all(before == after for before, after in timed)
    printed = capsys.readouterr().out
    assert "4 steps of the autoencoder" in printed
    assert "360 images to train on, 36 to validate" in printed


def test_a_dry_run_needs_no_folder_and_a_run_does(
    blobs_data: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*SMALL, *blobs_data, "--budget", "1s", "--dry-run"]) == 0
    with pytest.raises(SystemExit, match="2"):
        main([*SMALL, *blobs_data])
    assert "--out" in capsys.readouterr().err


def test_a_dry_run_by_several_processes_is_refused(
    blobs_data: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    assert main([*SMALL, *blobs_data, "--dry-run"]) == 2
    assert_one_line(capsys.readouterr().err, "--dry-run: got 2 processes, wanted one")


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [
        ((1, 8, 8), "dense-gmm"),
        ((3, 15, 15), "dense-gmm"),
        ((1, 28, 28), "conv"),
        ((3, 8, 16), "conv"),
        ((1, 128, 128), "conv"),
        ((3, 31, 31), "conv"),
        ((3, 20, 32), "photo"),
        ((3, 128, 128), "photo"),
    ],
)
def test_a_preset_is_picked_by_the_size_of_the_images(
    shape: tuple[int, int, int], wanted: str
) -> None:
    name, reason = suggest_preset(shape)
    assert name == wanted
    assert name in PRESETS
    assert f"{shape[1]} x {shape[2]}" in reason


@pytest.mark.slow
def test_the_picked_preset_is_printed_recorded_and_resumed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, data = tmp_path / "run", write_blobs(tmp_path / "data")
    command = ["--data", data, "--steps", "6", "--seed", "3", "--device", "cpu", "--out", str(run),
               "--set", "layers=16:relu", "--set", "prior.components=3"]  # fmt: skip
    assert main(command) == 0
    lines = capsys.readouterr().err.splitlines()
    [said] = [line for line in lines if line.startswith("preset ")]
    assert said.startswith("preset dense-gmm, for grey images of 8 x 8: ")
    config = json.loads((run / "config.json").read_text())
    assert (config["preset"], config["train"]["seed"]) == ("dense-gmm", 3)
    (run / "metrics.json").unlink()
    assert main([*command, "--resume"]) == 0
    assert main([*command, "--resume", "--seed", "4"]) == 1
    assert "other settings" in capsys.readouterr().err
