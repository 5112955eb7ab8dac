"""Trains with our trainer: `python -m benchmarks.trainers.ours_program`, see `task.py`."""

import dataclasses

import numpy as np
import torch

from benchmarks.trainers.task import LATENTS, LEARNING_RATE, PIXELS, Task
from training.data.datasets import Dataset, Split
from training.presets import find_preset
from training.trainer import Trainer


def main() -> None:
    """Trains and prints the report."""
    task = Task()
    preset = find_preset("dense")
    assert preset.model.latent_dim == LATENTS
    config = dataclasses.replace(
        preset.train,
        # The targets are the grey values, as for pythae.
        binarize=False,
        batch_size=task.batch_size,
        learning_rate=LEARNING_RATE,
        warmup=0.0,
        kl_warmup=0.0,
    )
    train, test = (
        Split(images.reshape(-1, 1, 28, 28), np.zeros(len(images), np.int64))
        for images in (task.train, task.test)
    )
    dataset = Dataset("images", train, test, test, (), {})
    steps = len(task.train) // task.batch_size
    # A nominal length so long that the learning rate is nearly constant, as pythae's is.
    whole = 1000 * steps * (task.epochs + 1)
    trainer = Trainer(preset.model, config, dataset, whole, bfloat16=task.bfloat16)
    for _ in range(steps):
        trainer.train_step()
    task.begin()
    for _ in range(steps * task.epochs):
        trainer.train_step()
    task.end()
    model = trainer.model  # not the moving average, which pythae does not have

    def encode(images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = model.encode(images)
        assert posterior.log_var is not None
        return posterior.mean, posterior.log_var

    task.report(encode, lambda z: torch.sigmoid(model.decode(z)).reshape(-1, PIXELS))


if __name__ == "__main__":
    main()
