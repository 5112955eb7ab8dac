"""A training ends with the best model that was validated, however well it knows few images."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latentserve.cli import main
from tests.support.tiny_runs import MODEL, PHASES, PLAIN, assert_same, torch_copy, trainer_of
from training.best_model import BestModel
from training.data.datasets import Dataset, Split
from training.model.config import Dense, ModelConfig
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.run_folder import RunFolder
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")

NOISY = {**PHASES, "binarize": False, "learning_rate": 0.02, "ema": 0.5}


def noise() -> Dataset:
    """Images of noise: of others than those that it is trained on, nothing can be learned."""
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 256, (count, 1, 8, 8), np.uint8), rng.integers(0, 2, count))
        for count in (40, 40, 20)
    ]
    return Dataset("noise", *splits, ("one", "other"), {})


def validation(nll: float, kl: float = 0.0) -> dict[str, float]:
    return {
        "validation_elbo": nll + kl,
        "validation_reconstruction": nll,
        "validation_kl": kl,
    }


def models(count: int) -> list[Vae]:
    return [Vae(PLAIN, (1, 4, 4), 0) for _ in range(count)]


def test_the_model_whose_objective_was_lowest_is_restored() -> None:
    best = BestModel(TrainConfig(beta=2.0))
    seen = models(4)
    scores = [validation(9.0), validation(5.0, 1.0), validation(4.0, 1.8), validation(float("nan"))]
    for step, (model, score) in enumerate(zip(seen, scores, strict=True), start=1):
        best.offer(model, step, score)
    again = BestModel(TrainConfig(beta=2.0))
    again.load_state_dict(torch_copy(best.state_dict()))
    for keeper in (best, again):
        one, other = models(2)
        assert keeper.restore(4, one, other) == 2
        assert_same(dict(one.state_dict()), dict(seen[1].state_dict()))
        assert_same(dict(other.state_dict()), dict(seen[1].state_dict()))


def test_weights_that_are_the_best_already_stay() -> None:
    best, (model, other) = BestModel(TrainConfig()), models(2)
    assert best.restore(1, model) is None
    best.offer(model, 1, validation(1.0))
    # Those of the averaged model were offered; those of the other are not to become them.
    before = torch_copy(dict(other.state_dict()))
    assert best.restore(1, model, other) is None
    assert_same(dict(other.state_dict()), before)


@pytest.mark.parametrize(
    "other", [{"objective": "iwae"}, {"objective": "wae"}, {"joined": 2}], ids=str
)
def test_a_model_of_another_objective_is_not_judged_by_its_elbo(other: dict[str, Any]) -> None:
    best, (model, target) = BestModel(TrainConfig(**other)), models(2)
    best.offer(model, 1, validation(1.0))
    assert best.restore(2, target) is None


def trained(trainer: Trainer) -> tuple[list[float], list[int | None], list[dict[str, Any]]]:
    """Trains to the end, with a validation every 5 steps.

    Returns:
        The ELBO of each validation, where the trainer went back to, and its state after each.
    """
    elbos, went_back, states = [], [], []
    while trainer.step < trainer.total_steps:
        trainer.train_step()
        if trainer.step % 5 == 0 or trainer.step in [phase.stop for phase in trainer.phases]:
            validated = trainer.validate()
            elbos.append(validated["validation_elbo"])
            went_back.append(trainer.keep_best(validated))
            states.append(torch_copy(trainer.state_dict()))
    return elbos, went_back, states


@pytest.mark.parametrize("likelihood", ["gaussian", "logistic"])
def test_few_images_trained_for_long_end_with_the_best_model(likelihood: str) -> None:
    model = ModelConfig(Dense(((64, "relu"),)), 8, likelihood=likelihood)  # type: ignore[arg-type]
    trainer = trainer_of(noise(), 300, model, **NOISY)
    elbos, went_back, _ = trained(trainer)
    assert elbos[-1] > min(elbos) + 10.0  # so that there is something to prevent
    assert went_back[-1] == 5 * (1 + int(np.argmin(elbos)))
    assert trainer.validate()["validation_elbo"] == min(elbos)
    for name, value in trainer.ema_model.state_dict().items():
        assert torch.equal(trainer.model.state_dict()[name], value)


@pytest.mark.slow
def test_each_phase_of_the_autoencoder_ends_with_the_best_and_resumes_to_the_same_numbers() -> None:
    model = dataclasses.replace(MODEL, network=Dense(((64, "relu"),)), likelihood="gaussian")
    trainer = trainer_of(noise(), 140, model, **NOISY)
    _, went_back, states = trained(trainer)
    names = [
        trainer.phases[[phase.stop for phase in trainer.phases].index(state["step"])].name
        for state, step in zip(states, went_back, strict=True)
        if step is not None
    ]
    assert names == ["autoencoder", "joint"]
    for state in states[1::8]:
        again = trainer_of(noise(), 1, model, **NOISY)
        again.load_state_dict(state)
        trained(again)
        assert_same(again.state_dict(), trainer.state_dict())


def test_a_state_of_an_earlier_version_is_resumed() -> None:
    trainer = trainer_of(noise(), 10, PLAIN)
    state = trainer.state_dict()
    del state["best_model"]
    again = trainer_of(noise(), 10, PLAIN)
    again.load_state_dict(state)
    trained(again)
    assert again.step == 10


@pytest.mark.slow
def test_a_run_says_where_it_went_back_to_and_is_measured_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, labels = tmp_path / "images.npy", tmp_path / "labels.npy"
    rng = np.random.default_rng(0)
    np.save(images, rng.integers(0, 256, (100, 8, 8), np.uint8))
    np.save(labels, rng.integers(0, 2, 100))
    run = tmp_path / "run"
    command = (
        "train", "--preset", "dense", "--device", "cpu", "--data", f"npy:{images},{labels}",
        "--steps", "300", "--set", "learning_rate=0.02", "--set", "ema=0.5", "--out", str(run),
    )  # fmt: skip
    assert main(command) == 0
    log = RunFolder(run).read_log()
    validated = [entry for entry in log if "validation_elbo" in entry]
    best = min(validated, key=lambda entry: entry["validation_elbo"])
    assert best["step"] < 300
    assert (
        f"going back to the weights of step {best['step']}, which fit the validation images better "
        "than those of step 300"
    ) in capsys.readouterr().err
    assert (f"After step 300 the model went back to the weights of step {best['step']}, ") in (
        run / "report.html"
    ).read_text()
    assert (
        RunFolder(run).read_json("metrics.json")["elbo"] < validated[-1]["validation_elbo"] - 10.0
    )
