"""Trains with pythae's trainer: `python -m benchmarks.trainers.pythae_program`, see `task.py`."""

import contextlib
import sys
import tempfile

import torch
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig
from pythae.trainers.training_callbacks import TrainingCallback
from torch import nn

from benchmarks.trainers.task import HIDDEN, LATENTS, LEARNING_RATE, PIXELS, Task


class Encoder(BaseEncoder):
    """784-512-256 with two heads, like the `dense` preset."""

    def __init__(self) -> None:
        BaseEncoder.__init__(self)
        first, second = HIDDEN
        self.layers = nn.Sequential(
            nn.Linear(PIXELS, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU()
        )
        self.mean = nn.Linear(second, LATENTS)
        self.log_var = nn.Linear(second, LATENTS)

    def forward(self, x: torch.Tensor) -> ModelOutput:
        """Computes the posteriors of images."""
        hidden = self.layers(x.reshape(len(x), -1))
        return ModelOutput(embedding=self.mean(hidden), log_covariance=self.log_var(hidden))


class Decoder(BaseDecoder):
    """Mirror image of the encoder."""

    def __init__(self) -> None:
        BaseDecoder.__init__(self)
        first, second = HIDDEN
        self.layers = nn.Sequential(
            nn.Linear(LATENTS, second), nn.ReLU(), nn.Linear(second, first), nn.ReLU(),
            nn.Linear(first, PIXELS), nn.Sigmoid(),
        )  # fmt: skip

    def forward(self, z: torch.Tensor) -> ModelOutput:
        """Decodes latents."""
        return ModelOutput(reconstruction=self.layers(z).reshape(-1, 1, 28, 28))


class Clock(TrainingCallback):
    """Times all epochs but the first."""

    def __init__(self, task: Task):
        self._task = task
        self._ended = 0

    def on_epoch_begin(self, _config: object, *, epoch: int, **_: object) -> None:
        """Starts the clocks before the second epoch."""
        if epoch == 2:
            self._task.begin()

    def on_epoch_end(self, *_: object, **__: object) -> None:
        """Stops the clocks after the last epoch: saving the model, which comes next, is not timed.

        Our trainer's program saves no model.
        """
        self._ended += 1
        if self._ended == self._task.epochs + 1:
            self._task.end()


def main() -> None:
    """Trains and prints the report."""
    task = Task()
    encoder, decoder = Encoder(), Decoder()
    config = VAEConfig((1, 28, 28), LATENTS, reconstruction_loss="bce")
    model = VAE(model_config=config, encoder=encoder, decoder=decoder)
    images = torch.from_numpy(task.train).float().div_(255).reshape(-1, 1, 28, 28)
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(sys.stderr):
        trainer = BaseTrainer(
            model,
            BaseDataset(images, torch.zeros(len(images))),
            training_config=BaseTrainerConfig(
                output_dir=folder,
                per_device_train_batch_size=task.batch_size,
                num_epochs=task.epochs + 1,
                learning_rate=LEARNING_RATE,
            ),
            callbacks=[Clock(task)],
        )
        trainer.train()

    def encode(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        answer = model.encoder(batch)
        return answer.embedding, answer.log_covariance

    task.report(encode, lambda z: model.decoder(z).reconstruction)


if __name__ == "__main__":
    main()
