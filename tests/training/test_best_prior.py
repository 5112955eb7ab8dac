"""A fit of the prior ends with the prior under which held-out latents are likeliest."""

import numpy as np
import pytest
import torch

from tests.support.untrained import KINDS, random_model
from training.best_prior import BestPrior
from training.data.datasets import Dataset, Split
from training.model.config import Dense, ModelConfig, PriorConfig
from training.model.objectives import prior_nlls
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.trainer import Trainer


@torch.no_grad()
def loss(model: Vae, z: torch.Tensor, labels: torch.Tensor) -> float:
    nll, label_nll = prior_nlls(model, z, labels)
    return float((nll + 0.25 * label_nll).double().mean())


def test_the_best_of_the_priors_that_were_offered_is_restored() -> None:
    rng = np.random.default_rng(0)
    z = torch.from_numpy(rng.standard_normal((40, 3), np.float32))
    labels = torch.from_numpy(rng.integers(0, 3, 40))
    models = [random_model(KINDS["gmm"], seed) for seed in range(4)]
    losses = [loss(model, z, labels) for model in models]
    best = BestPrior(0.25)
    best.judge_by(z, labels)
    for model in models:
        best.offer(model)
    state = best.state_dict()
    again = BestPrior(0.25)
    again.load_state_dict(state)
    for keeper in (best, again):
        target = random_model(KINDS["gmm"], 9)
        keeper.restore(target)
        assert loss(target, z, labels) == min(losses)
    best.forget()
    best.offer(models[losses.index(max(losses))])
    best.restore(target)
    assert loss(target, z, labels) == max(losses)


def test_without_latents_or_offers_nothing_changes() -> None:
    best, model = BestPrior(0.25), random_model(KINDS["gmm"])
    before = {key: value.clone() for key, value in model.state_dict().items()}
    best.offer(model)
    best.restore(model)
    assert all((model.state_dict()[key] == value).all() for key, value in before.items())


@pytest.mark.parametrize("kind", ["gmm", "flow-gmm"])
def test_a_prior_of_many_weights_does_not_fit_few_images_ever_better(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    offered: list[float] = []
    offer = BestPrior.offer

    def note(keeper: BestPrior, model: Vae) -> None:
        assert keeper._latents is not None
        offered.append(loss(model, *keeper._latents))
        offer(keeper, model)

    monkeypatch.setattr(BestPrior, "offer", note)
    rng = np.random.default_rng(0)
    splits = [
        Split(rng.integers(0, 256, (count, 1, 8, 8), np.uint8), rng.integers(0, 2, count))
        for count in (60, 40, 20)
    ]
    config = ModelConfig(
        Dense(((32, "relu"),)), 12, likelihood="gaussian",
        prior=PriorConfig(kind, components=8, couplings=2, width=32),
    )  # fmt: skip
    train = TrainConfig(
        binarize=False, batch_size=32, prior_fit=4.0, prior_refit=4.0, prior_learning_rate=0.01
    )
    dataset = Dataset("noise", *splits, ("one", "other"), {})
    trainer = Trainer(config, train, dataset, 60)
    for phase in trainer.phases:
        offered.clear()
        while trainer.step < phase.stop:
            trainer.train_step()
        if phase.trains_autoencoder:
            assert not offered
            continue
        # The mixture alone, at times, and before a second fit the prior that there was.
        assert len(offered) >= 17 + (phase.name == "prior refit")
        assert offered[-1] > min(offered) + 0.02
        latents = trainer._prior_steps._best._latents
        assert latents is not None
        for model in (trainer.model, trainer.ema_model):
            assert loss(model, *latents) == min(offered)
