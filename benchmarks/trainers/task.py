"""Command-line arguments and report that all trainer programs share."""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

PIXELS, LATENTS = 784, 32
HIDDEN = (512, 256)
LEARNING_RATE = 1e-3
_SEED = 1


@dataclass(frozen=True)
class Report:
    """Result of a training; times are of all epochs but the first, which warms up.

    Attributes:
        cpu_seconds: User and system time of these epochs.
        wall_seconds: Wall time of these epochs.
        epochs: Number of these epochs.
        held_out_nats: Negative ELBO on held-out images, nats per image.
    """

    cpu_seconds: float
    wall_seconds: float
    epochs: int
    held_out_nats: float


class Task:
    """One training, as requested on the command line.

    Attributes:
        train: Training images, uint8 [N, 784].
        test: Held-out images, uint8 [M, 784].
        epochs: Number of epochs that are timed; one more, which is not, precedes them.
        batch_size: Images per step.
        bfloat16: Whether to compute in bfloat16.
    """

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--images", required=True, help="an .npz with train and test")
        parser.add_argument("--epochs", type=int, required=True)
        parser.add_argument("--batch-size", type=int, required=True)
        parser.add_argument("--threads", type=int, required=True)
        parser.add_argument(
            "--bfloat16", action="store_true", help="compute in bfloat16, if the trainer can"
        )
        wanted = parser.parse_args()
        torch.set_num_threads(wanted.threads)
        with np.load(wanted.images) as arrays:
            self.train: np.ndarray = arrays["train"]
            self.test: np.ndarray = arrays["test"]
        self.epochs: int = wanted.epochs
        self.batch_size: int = wanted.batch_size
        self.bfloat16: bool = wanted.bfloat16
        self._cpu = self._wall = 0.0

    def begin(self) -> None:
        """Starts the clocks; called after the first epoch."""
        self._cpu, self._wall = time.process_time(), time.perf_counter()

    def end(self) -> None:
        """Stops the clocks; called after the last epoch."""
        self._cpu = time.process_time() - self._cpu
        self._wall = time.perf_counter() - self._wall

    def report(
        self,
        encode: Callable[[Tensor], tuple[Tensor, Tensor]],
        decode: Callable[[Tensor], Tensor],
    ) -> None:
        """Measures the model on held-out images and prints the report.

        Args:
            encode: Maps images float32 [N, 1, 28, 28] in [0, 1] to mean and log_var, [N, D]
                each.
            decode: Maps latents float32 [N, D] to images in [0, 1], N * 784 pixels in any shape.
        """
        images = torch.from_numpy(self.test).float().div_(255).reshape(-1, 1, 28, 28)
        noise = torch.Generator().manual_seed(_SEED)
        with torch.inference_mode():
            mean, log_var = encode(images)
            eps = torch.randn(mean.shape, generator=noise)
            pixels = decode(mean + torch.exp(0.5 * log_var) * eps).reshape(len(images), -1)
            nll = torch.nn.functional.binary_cross_entropy(
                pixels, images.reshape(len(images), -1), reduction="sum"
            )
            kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum()
        nats = float(nll + kl) / len(images)
        print(json.dumps(asdict(Report(self._cpu, self._wall, self.epochs, nats))), flush=True)
