"""The trainer: the weights of each phase, schedules, skipped steps, learning, calibration."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from common.pixels import to_unit
from tests.support.blobs import blobs
from tests.support.tiny_runs import (
    MODEL,
    PHASES,
    PLAIN,
    assert_same,
    step_to,
    torch_copy,
    trainer_of,
)
from training.budget import calibrate
from training.data.datasets import Dataset, Split
from training.data.targets import Targets
from training.errors import ConfigError, DivergenceError
from training.measure.adapter import as_autoencoder
from training.measure.elbo import evaluate
from training.model.config import Conv, ModelConfig, PriorConfig
from training.model.objectives import prior_nlls
from training.model.train_config import TrainConfig
from training.parallel import Parallel
from training.schedule import draws_of
from training.trainer import Trainer

pytest_plugins = ["tests.support.run_fixtures"]
pytestmark = pytest.mark.usefixtures("one_thread")


def by_part(trainer: Trainer) -> dict[str, dict[str, torch.Tensor]]:
    """Copies of the weights of the autoencoder, of the prior, and of their averages."""
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for whose, model in (("", trainer.model), ("averaged ", trainer.ema_model)):
        for name, value in model.state_dict().items():
            part = whose + ("prior" if name.startswith("prior.") else "autoencoder")
            parts.setdefault(part, {})[name] = value.clone()
    return parts


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {
        part
        for part in before
        if any(not torch.equal(value, after[part][name]) for name, value in before[part].items())
    }


def test_each_phase_changes_its_own_weights_only(few: Dataset) -> None:
    trainer = trainer_of(few, 40, MODEL, **PHASES, weight_decay=0.1)
    seen = {}
    for phase in trainer.phases:
        before = by_part(trainer)
        trainer.train_step()
        entered = by_part(trainer)
        step_to(trainer, phase.stop)
        seen[phase.name] = changed(before, entered), changed(entered, by_part(trainer))
        if not phase.trains_autoencoder:
            # The autoencoder is frozen at its average, which is what will be measured.
            for name, value in before["averaged autoencoder"].items():
                assert torch.equal(entered["autoencoder"][name], value)
    both = {"autoencoder", "averaged autoencoder"}
    prior = {"prior", "averaged prior"}
    assert seen["autoencoder"][1] == both
    assert seen["prior fit"] == (prior | {"autoencoder"}, prior)
    assert seen["joint"][1] == both | prior
    assert seen["prior refit"] == (prior | {"autoencoder"}, prior)


def test_fitting_the_prior_lowers_the_kl_of_validation(few: Dataset) -> None:
    trainer = trainer_of(few, 300, MODEL, **PHASES, prior_learning_rate=0.01)
    autoencoder, fit, joint, _ = trainer.phases
    step_to(trainer, autoencoder.stop)
    images = torch.from_numpy(to_unit(few.train.images))
    with torch.inference_mode():
        z = trainer.ema_model.encode(images).mean

    def nll() -> float:
        with torch.inference_mode():
            labels = torch.from_numpy(few.train.labels)
            return prior_nlls(trainer.ema_model, z, labels)[0].mean().item()

    normal = trainer.validate()
    trainer.train_step()  # which begins with expectation maximisation
    mixed = nll()
    numbers = step_to(trainer, fit.stop)
    assert nll() < mixed
    first, last = (
        np.mean([entry["prior_nll"] for entry in part]) for part in (numbers[:10], numbers[-10:])
    )
    assert last < first
    fitted = trainer.validate()
    assert fitted["validation_kl"] < normal["validation_kl"] - 0.1
    assert fitted["validation_reconstruction"] == normal["validation_reconstruction"]
    assert fitted["validation_elbo"] == pytest.approx(
        fitted["validation_reconstruction"] + fitted["validation_kl"]
    )
    step_to(trainer, joint.stop)
    assert trainer.validate()["validation_elbo"] < fitted["validation_elbo"]


@pytest.mark.parametrize("rows", [20, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.slow
def test_the_prior_of_a_few_images_is_fitted_to_their_posteriors_and_not_to_draws(
    rows: int,
) -> None:
    """One draw from each of a few posteriors, taken for points, would be far from all others."""
    model = ModelConfig(MODEL.network, 40, prior=PriorConfig("gmm", components=50))
    # One image, whose posteriors are all the same: the best prior is their distribution.
    image = blobs(3).train.images[:1]
    split = Split(np.repeat(image, rows, axis=0), np.zeros(rows, np.int64))
    dataset = Dataset("one", split, split, split, class_names=(), sha256={})
    trainer = trainer_of(dataset, 40, model, **PHASES)
    numbers = step_to(trainer, trainer.phases[1].stop)
    with torch.inference_mode():
        log_var = trainer.ema_model.encode(torch.from_numpy(to_unit(image))).log_var
    assert log_var is not None
    entropy = 0.5 * float((log_var + 1.0 + math.log(2.0 * math.pi)).sum())
    for entry in numbers[trainer.phases[1].start :]:
        assert entry["prior_nll"] < entropy + 6.0
    assert trainer.skipped == 0


def test_the_measured_model_is_the_moving_average_of_the_weights(few: Dataset) -> None:
    trainer = trainer_of(few, 40, ema=0.6)
    wanted = None
    for step in range(40):
        trainer.train_step()
        weights = trainer.model.state_dict()
        if wanted is None:
            wanted = {name: value.double() for name, value in weights.items()}
            continue
        memory = min(0.6, (1 + step) / (10 + step))
        for name, value in weights.items():
            wanted[name] = memory * wanted[name] + (1 - memory) * value.double()
    assert wanted is not None
    for name, value in trainer.ema_model.state_dict().items():
        torch.testing.assert_close(value.double(), wanted[name], rtol=1e-4, atol=1e-5)
    assert any(
        not torch.allclose(value, trainer.model.state_dict()[name], rtol=1e-4)
        for name, value in trainer.ema_model.state_dict().items()
    )
    off = trainer_of(few, 40, ema=0.0)
    step_to(off, 40)
    for name, value in off.ema_model.state_dict().items():
        torch.testing.assert_close(value, off.model.state_dict()[name])


@pytest.mark.parametrize(
    "model",
    [
        dataclasses.replace(MODEL, posterior="delta", prior=PriorConfig("none")),
        dataclasses.replace(MODEL, posterior="delta", prior=PriorConfig("gmm", components=4)),
        dataclasses.replace(MODEL, prior=PriorConfig("flow", couplings=2, width=8)),
        dataclasses.replace(MODEL, scale="sigmoid", latent_dim=1, prior=PriorConfig("gmm")),
        dataclasses.replace(MODEL, network=Conv((8, 4), (1,), (1,), 16, 16)),
    ],
    ids=["plain", "plain gmm", "flow", "one latent", "conv"],
)
@pytest.mark.parametrize("labelled", [True, False])
@pytest.mark.parametrize("objective", ["elbo", "iwae"])
def test_every_type_of_autoencoder_learns(
    model: ModelConfig, labelled: bool, objective: str
) -> None:
    dataset = blobs(side=9, labelled=labelled)
    changes = {"objective": objective, "draws": 2 if objective == "iwae" else 1}
    trainer = trainer_of(dataset, 60, model, **PHASES | changes, learning_rate=5e-3)
    numbers = step_to(trainer, trainer.total_steps)
    assert all(math.isfinite(value) for entry in numbers for value in entry.values())
    elbos = [entry["elbo"] for entry in numbers if "elbo" in entry]
    assert elbos[-1] < 0.85 * elbos[0]
    assert trainer.ema_model.labels == (3 if labelled and "gmm" in model.prior.kind else 0)
    assert trainer.skipped == 0


@pytest.mark.parametrize(
    "model",
    [
        dataclasses.replace(MODEL, conditional=True),
        dataclasses.replace(MODEL, conditional=True, network=Conv((8, 4), (1,), (1,), 16, 16)),
        dataclasses.replace(MODEL, conditional=True, posterior="delta"),
    ],
    ids=["dense", "conv", "plain"],
)
def test_a_conditional_model_learns_and_uses_the_class(model: ModelConfig) -> None:
    dataset = blobs(side=9)
    trainer = trainer_of(dataset, 200, model, **PHASES, learning_rate=5e-3)
    numbers = step_to(trainer, trainer.total_steps)
    elbos = [entry["elbo"] for entry in numbers if "elbo" in entry]
    assert elbos[-1] < 0.85 * elbos[0]
    assert trainer.ema_model.class_counts.tolist() == np.bincount(dataset.train.labels).tolist()
    test, adapted = dataset.test, as_autoencoder(trainer.ema_model)
    images = Targets(test.images, 0)
    wrong = (test.labels + 1) % 3
    right, other = (
        evaluate(adapted, images, labels=labels).reconstruction for labels in (test.labels, wrong)
    )
    assert other > right + 0.5
    with pytest.raises(ValueError, match="labels: got none, wanted the classes"):
        evaluate(adapted, images)


def test_latents_of_a_conditional_model_have_no_offset_of_their_class() -> None:
    dataset = blobs(side=9)
    train = dataset.train
    offsets = []
    for weight in (0.0, 3.0):
        model = dataclasses.replace(PLAIN, conditional=True)
        trainer = trainer_of(dataset, 300, model, class_offset_weight=weight, learning_rate=5e-3)
        step_to(trainer, 300)
        images = Targets(train.images, 0)[:]
        means, _ = as_autoencoder(trainer.ema_model).encode(images, train.labels)
        of_classes = np.stack([means[train.labels == label].mean(axis=0) for label in range(3)])
        offsets.append(float(np.square(of_classes - of_classes.mean(axis=0)).sum()))
    assert offsets[1] < 0.2 * offsets[0]


@pytest.mark.parametrize("posterior", ["gaussian", "delta"])
def test_a_wasserstein_autoencoder_learns_and_brings_its_latents_to_the_prior(
    posterior: str, few: Dataset
) -> None:
    model = dataclasses.replace(PLAIN, posterior=posterior)
    wae, free = (
        trainer_of(few, 200, model, objective="wae", mmd_weight=weight, learning_rate=5e-3)
        for weight in (500.0, 0.0)
    )
    numbers, other = step_to(wae, 200), step_to(free, 200)
    assert all(math.isfinite(value) for entry in numbers for value in entry.values())
    assert numbers[-1]["reconstruction"] < 0.85 * numbers[0]["reconstruction"]
    found, without = (np.mean([entry["mmd"] for entry in each[-20:]]) for each in (numbers, other))
    assert found < 0.05
    assert without > 2 * found
    assert "mmd" not in trainer_of(few, 3).train_step()


def test_the_distance_of_a_wasserstein_autoencoder_needs_pairs_in_each_process(
    few: Dataset,
) -> None:
    config = TrainConfig(objective="wae", batch_size=4)
    Trainer(PLAIN, config, few, 3, parallel=Parallel(0, 2))
    with pytest.raises(ConfigError, match="batch_size: got 4, wanted 8 or more with objective=wae"):
        Trainer(PLAIN, config, few, 3, parallel=Parallel(0, 4))


@pytest.mark.parametrize("network", ["dense", "conv"])
def test_training_in_bfloat16_reaches_nearly_the_same_elbo(network: str, few: Dataset) -> None:
    model = (
        MODEL
        if network == "dense"
        else dataclasses.replace(MODEL, network=Conv((8, 4), (1,), (1,), 16, 16))
    )
    runs = []
    for bfloat16 in (False, True):
        trainer = Trainer(model, TrainConfig(**PHASES), few, 40, bfloat16=bfloat16)
        runs.append(step_to(trainer, trainer.total_steps))
        assert all(value.dtype == torch.float32 for value in trainer.model.parameters())
        assert trainer.skipped == 0
    assert all(math.isfinite(value) for numbers in runs[1] for value in numbers.values())
    assert runs[0] != runs[1]
    final = [np.mean([entry["elbo"] for entry in run[40:50]]) for run in runs]
    assert final[1] == pytest.approx(final[0], rel=0.03)


def test_the_learning_rate_rises_then_falls_and_the_kl_weight_rises_to_beta(few: Dataset) -> None:
    trainer = trainer_of(few, 150, beta=4.0, warmup=0.2, kl_warmup=0.5, learning_rate=0.01)
    numbers = step_to(trainer, 150)
    rates = [entry["learning_rate"] for entry in numbers]
    top = rates.index(max(rates))
    assert 20 <= top <= 30
    assert rates[: top + 1] == sorted(rates[: top + 1])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert 0 < rates[-1] < 0.001 < max(rates) <= 0.01
    betas = [entry["beta"] for entry in numbers]
    assert betas == sorted(betas)
    assert betas[0] < 0.5
    assert betas[75:] == [4.0] * 75


def test_each_fit_of_the_prior_has_its_own_schedule_and_the_autoencoder_one_over_its_phases(
    few: Dataset,
) -> None:
    changes = {"warmup": 0.1, "kl_warmup": 0.5, "learning_rate": 0.01, "prior_learning_rate": 0.1}
    trainer = trainer_of(few, 160, MODEL, **PHASES | changes)
    phases, seen = trainer.phases, step_to(trainer, trainer.total_steps)
    rates = {
        phase.name: [entry["learning_rate"] for entry in seen[phase.start : phase.stop]]
        for phase in phases
    }
    whole = trainer_of(few, 160, **PHASES | changes)
    wanted = [entry["learning_rate"] for entry in step_to(whole, 160)]
    assert rates["autoencoder"] + rates["joint"] == wanted
    for name in ("prior fit", "prior refit"):
        assert rates[name][:2] == pytest.approx([0.005, 0.01], rel=0.01)
        assert rates[name][:15] == sorted(rates[name][:15])
        assert rates[name][20:] == sorted(rates[name][20:], reverse=True)
        assert rates[name][-1] < 0.01
    betas = [entry["beta"] for entry in seen if "beta" in entry]
    assert betas[:80] == pytest.approx(np.arange(1, 81) / 80)
    assert betas[80:] == [1.0] * 80


def test_training_numbers_depend_on_the_seed(few: Dataset) -> None:
    def numbers(seed: int) -> list[dict[str, float]]:
        trainer = trainer_of(few, seed=seed)
        return [trainer.train_step() for _ in range(4)]

    assert numbers(1) == numbers(1)
    assert numbers(1) != numbers(2)


def poison(trainer: Trainer, step: int) -> None:
    """Makes a gradient of one step NaN."""
    trainer.model.to_mean.weight.register_hook(
        lambda grad: grad * math.nan if trainer.step == step else grad
    )


def test_a_nan_gradient_skips_exactly_its_own_step(few: Dataset) -> None:
    trainer = trainer_of(few)
    poison(trainer, step=5)
    for step in range(12):
        before = torch_copy(trainer.state_dict())
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


def test_a_nan_gradient_in_a_fit_of_the_prior_skips_its_step(few: Dataset) -> None:
    trainer = trainer_of(few, 20, MODEL, **PHASES)
    fit = trainer.phases[1]
    assert trainer.model.prior is not None
    trainer.model.prior.means.register_hook(
        lambda grad: grad * math.nan if trainer.step == fit.start + 2 else grad
    )
    step_to(trainer, fit.start + 2)
    before = torch_copy(trainer.state_dict())
    assert trainer.train_step()["skipped"] == 1
    after = trainer.state_dict()
    for part in ("model", "average", "optimizer"):
        assert_same(after[part], before[part], part)
    step_to(trainer, trainer.total_steps)
    assert trainer.skipped == 1


@pytest.mark.parametrize("allowed", [0, 3])
def test_more_skipped_steps_than_allowed_stop_the_run(allowed: int, few: Dataset) -> None:
    trainer = trainer_of(few, max_skipped=allowed)
    trainer.model.to_mean.weight.register_hook(lambda grad: grad * math.nan)
    for _ in range(allowed):
        trainer.train_step()
    with pytest.raises(DivergenceError, match=f"{allowed + 1} steps were skipped"):
        trainer.train_step()
    assert trainer.step == trainer.skipped == allowed + 1


def test_calibration_does_not_change_the_training(few: Dataset) -> None:
    trainer, untouched = (trainer_of(few, 16, MODEL, **PHASES) for _ in range(2))
    assert calibrate(trainer, 0.2) >= 1
    trainer.set_length(16)
    assert_same(trainer.state_dict(), untouched.state_dict())
    total = untouched.total_steps
    assert step_to(trainer, total) == step_to(untouched, total)
    assert_same(trainer.state_dict(), untouched.state_dict())


def test_the_budget_covers_validations_and_encoding(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(few, 16, MODEL, **PHASES)
    # A validation after each of 24 steps, and two fits, each judged by the 100 validation images,
    # to 300 images in 4 binarizations; in units of 100 images.
    assert trainer.overhead_in_validations() == 24 + 2 + 2 * 12
    trainer.set_length(10**6)
    # 20, 2 more where phases end between them, and 13 early ones.
    assert trainer.overhead_in_validations() == 20 + 2 + 13 + 2 + 2 * 12
    plain = trainer_of(few, 1)
    assert plain.overhead_in_validations() == 1

    # A fake clock: a step takes 0.01 s and a validation `validation` seconds.
    now, validation = 0.0, 0.0

    def train_step(_trainer: Trainer) -> dict[str, float]:
        nonlocal now
        now += 0.01
        return {}

    def validate(_trainer: Trainer) -> dict[str, float]:
        nonlocal now
        now += validation
        return {}

    monkeypatch.setattr("training.budget.cpu_seconds", lambda: now)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    monkeypatch.setattr(Trainer, "validate", validate)
    assert calibrate(plain, 100.0) == 10_000
    validation = 1.0
    # 20 validations and 7 early ones.
    assert calibrate(plain, 100.0) == 7_300
    # At most half of the budget is kept for validations: such a run exceeds its budget.
    validation = 60.0
    assert calibrate(plain, 100.0) == 5_000
    # The fits of the prior add 0.25 steps each per step of the autoencoder.
    validation = 1.0
    overhead = 20 + 4 + 6 + 2 + 2 * 12  # even, at ends of phases, early; and the fits
    assert calibrate(trainer, 200.0) == round((200 - overhead) / 0.01 / 1.5)


def test_the_budget_covers_steps_of_several_draws_late_in_the_run(
    few: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a clock on which a step takes 10 ms a draw, and nothing else takes any time."""
    now = 0.0

    def train_step(trainer: Trainer) -> dict[str, float]:
        nonlocal now
        now += 0.01 * draws_of(trainer.step, trainer.steps, trainer.config)
        trainer.step += 1
        return {}

    monkeypatch.setattr("training.budget.cpu_seconds", lambda: now)
    monkeypatch.setattr(Trainer, "train_step", train_step)
    changes = {"objective": "iwae", "draws": 5, "iwae_from": 0.75}
    assert calibrate(trainer_of(few, 1, **changes), 100.0) == round(
        100 / (0.01 * (0.75 + 0.25 * 5))
    )


def test_the_budget_covers_the_fits_of_the_prior(few: Dataset) -> None:
    model = dataclasses.replace(MODEL, prior=PriorConfig("flow", couplings=8, width=64))
    steps = [
        calibrate(trainer_of(few, 1, model, **PHASES | {"prior_refit": refit}), 1.0)
        for refit in (0.0, 20.0)
    ]
    assert steps[0] > 3 * steps[1]
