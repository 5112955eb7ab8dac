"""Trains with pythae: `python -m benchmarks.trainers.pythae_colour_program`, `colour_task.py`."""

import contextlib
import math
import sys
import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.models.nn.benchmarks.celeba import Decoder_Conv_AE_CELEBA, Encoder_Conv_VAE_CELEBA
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn

from benchmarks.trainers.colour_task import Task
from training.model.networks import build_networks
from training.presets import find_preset

_BATCH_SIZE = 64
_LEARNING_RATE = 1e-3
_MAX_EPOCHS = 1_000_000


class Over(Exception):
    """The CPU time has been used."""


class Encoder(BaseEncoder):
    """The encoder of one of our presets, with its two heads."""

    def __init__(self, network: nn.Module, features: int, latents: int):
        BaseEncoder.__init__(self)
        self.network = network
        self.mean = nn.Linear(features, latents)
        self.log_var = nn.Linear(features, latents)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        """Computes the posteriors of images."""
        hidden = self.network(x - 0.5)
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):
    """The decoder of one of our presets, with a sigmoid as pythae's own networks have it."""

    def __init__(self, network: nn.Module):
        BaseDecoder.__init__(self)
        self.network = network

    def forward(self, z: torch.Tensor) -> ModelOutput:
        """Decodes latents."""
        return ModelOutput(reconstruction=torch.sigmoid(self.network(z)))


class Clock(TrainingCallback):
    """Counts the steps, and stops once the CPU time has been used."""

    def __init__(self, task: Task):
        self._task = task
        self.steps = 0

    def on_train_step_end(self, *_: object, **__: object) -> None:
        """Counts a step.

        Raises:
            Over: The CPU time has been used.
        """
        self.steps += 1
        if self._task.over:
            raise Over


def build(name: str, shape: tuple[int, int, int]) -> VAE:
    """Builds pythae's VAE with its own networks for CELEBA, or with those of one of our presets."""
    if name == "celeba":
        config = VAEConfig(shape, 64, reconstruction_loss="mse")
        return VAE(config, Encoder_Conv_VAE_CELEBA(config), Decoder_Conv_AE_CELEBA(config))
    preset = find_preset(name).model
    encoder, features, decoder = build_networks(preset.network, shape, preset.latent_dim)
    config = VAEConfig(shape, preset.latent_dim, reconstruction_loss="mse")
    return VAE(config, Encoder(encoder, features, preset.latent_dim), Decoder(decoder))


def negative_elbo(model: VAE, task: Task) -> float:
    """The negative ELBO of the test images in nats, of values from 0 to 255.

    Under Gaussian pixels with the scale that suits the test images best, where pythae's loss has a
    scale of 1, under which no model of images has a meaningful density.
    """
    noise = torch.Generator().manual_seed(1)
    squares = kl = 0.0
    with torch.inference_mode():
        for images in task.chunks(task.test):
            posterior = model.encoder(images)
            mean, log_var = posterior.embedding, posterior.log_covariance
            z = mean + torch.exp(0.5 * log_var) * torch.randn(mean.shape, generator=noise)
            off = model.decoder(z).reconstruction - images
            squares += float(off.double().square().sum())
            kl += float(0.5 * (mean.square() + log_var.exp() - 1.0 - log_var).sum())
    values = task.test.size
    entropy = 0.5 * math.log(2.0 * math.pi * math.e * 255.0**2 * squares / values)
    return (values * entropy + kl) / len(task.test)


def main() -> None:
    """Trains and prints the report."""
    task = Task()
    _, channels, height, width = task.train.shape
    model = build(task.network, (channels, height, width))
    clock = Clock(task)
    images = torch.from_numpy(task.train).float().div_(255.0)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = BaseTrainer(
            model,
            BaseDataset(images, torch.zeros(len(images))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=_BATCH_SIZE,
                num_epochs=_MAX_EPOCHS,
                learning_rate=_LEARNING_RATE,
            ),
            callbacks=[clock],
        )
        task.begin()
        with contextlib.suppress(Over):
            trainer.train()
        task.end()
    model.eval()
    task.report(
        lambda images: model.decoder(model.encoder(images).embedding).reconstruction,
        negative_elbo(model, task),
        images=clock.steps * _BATCH_SIZE,
        parameters=sum(weight.numel() for weight in model.parameters()),
    )


if __name__ == "__main__":
    main()
