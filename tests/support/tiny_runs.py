"""Settings of tiny training runs, and functions that step and compare trainers."""

import io
import os
from pathlib import Path
from typing import Any

import torch

from training.data.datasets import Dataset
from training.model.config import Dense, ModelConfig, PriorConfig
from training.model.train_config import TrainConfig
from training.trainer import Trainer

STEPS, TOTAL = 40, 60
SMALL = (
    "--preset", "dense-gmm", "--device", "cpu", "--set", "layers=16:relu", "--set", "latent_dim=3",
    "--set", "batch_size=32", "--set", "prior.kind=flow-gmm", "--set", "prior.components=6",
    "--set", "prior.width=8", "--set", "prior_start=0.5", "--set", "prior_fit=0.25",
    "--set", "prior_refit=0.25",
)  # fmt: skip
COMMAND = (*SMALL, "--steps", str(STEPS))
# The last bits of the numbers depend on the number of threads.
ONE_THREAD = {**os.environ, "OMP_NUM_THREADS": "1"}

#: The settings of `SMALL` as records.
PRIOR = PriorConfig("flow-gmm", components=6, couplings=2, width=8)
MODEL = ModelConfig(Dense(((16, "relu"),)), 3, prior=PRIOR)
PHASES = {"prior_start": 0.5, "prior_fit": 0.25, "prior_refit": 0.25, "batch_size": 32}
#: A model with the standard normal prior.
PLAIN = ModelConfig(Dense(((32, "relu"),)), 2)


def trainer_of(
    dataset: Dataset, steps: int = 20, model: ModelConfig = PLAIN, **changes: Any
) -> Trainer:
    return Trainer(model, TrainConfig(**changes), dataset, steps)


def step_to(trainer: Trainer, step: int) -> list[dict[str, float]]:
    return [trainer.train_step() for _ in range(step - trainer.step)]


def torch_copy(state: dict[str, Any]) -> dict[str, Any]:
    """Copy of a state, serialised and read back as in a checkpoint."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    copied: dict[str, Any] = torch.load(buffer, weights_only=True)
    return copied


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


def assert_one_line(text: str, *parts: str) -> None:
    """Asserts that the output is one error line of the command, with these parts in it."""
    assert text.count("\n") == 1, text
    assert text.startswith("latentserve train: "), text
    for part in parts:
        assert part in text
