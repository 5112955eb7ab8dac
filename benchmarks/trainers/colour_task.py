"""Command-line arguments and report that the trainer programs for colour share."""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor

_CHUNK = 100


@dataclass(frozen=True)
class Report:
    """Result of a training.

    Attributes:
        cpu_seconds: User and system time of the training, of all threads together.
        images: Number of images processed, each as often as it was.
        parameters: Weights of encoder and decoder.
        psnr: Of mean reconstructions of the test images, in dB, mean over the images.
        bits_per_dimension: Negative ELBO of the test images, in bits, divided by their C * H * W
            values of 8 bits.
    """

    cpu_seconds: float
    images: int
    parameters: int
    psnr: float
    bits_per_dimension: float


class Task:
    """One training, as requested on the command line.

    Attributes:
        train: Training images, uint8 [N, C, H, W].
        test: Test images, uint8 [M, C, H, W].
        labels: Classes of the training images, int64 [N].
        seconds: CPU time of the training, in seconds a thread.
        network: Name of the network to train.
    """

    def __init__(self) -> None:
        parser = argparse.ArgumentParser()
        parser.add_argument("--images", required=True, help="an .npz with train, labels and test")
        parser.add_argument("--seconds", type=float, required=True)
        parser.add_argument("--threads", type=int, required=True)
        parser.add_argument("--network", default="")
        wanted = parser.parse_args()
        torch.set_num_threads(wanted.threads)
        with np.load(wanted.images) as arrays:
            self.train: np.ndarray = arrays["train"]
            self.test: np.ndarray = arrays["test"]
            self.labels: np.ndarray = arrays["labels"]
        self.seconds: float = wanted.seconds
        self.network: str = wanted.network
        self._threads: int = wanted.threads
        self._cpu = 0.0

    def begin(self) -> None:
        """Starts the clock."""
        self._cpu = time.process_time()

    @property
    def over(self) -> bool:
        """Whether the CPU time has been used."""
        return time.process_time() - self._cpu >= self.seconds * self._threads

    def end(self) -> None:
        """Stops the clock."""
        self._cpu = time.process_time() - self._cpu

    def report(
        self,
        reconstruct: Callable[[Tensor], Tensor],
        negative_elbo: float,
        *,
        images: int,
        parameters: int,
    ) -> None:
        """Measures the model on the test images and prints the report.

        Args:
            reconstruct: Maps images float32 [N, C, H, W] in [0, 1] to their mean
                reconstructions.
            negative_elbo: Of the test images, in nats per image, under a density of values from 0
                to 255.
            images: Number of images processed in training.
            parameters: Weights of encoder and decoder.
        """
        ratios = []
        with torch.inference_mode():
            for chunk in self.chunks(self.test):
                squares = (reconstruct(chunk).clamp(0.0, 1.0) - chunk).square()
                ratios.append(-10.0 * torch.log10(squares.double().flatten(1).mean(dim=1)))
        bits = negative_elbo / math.log(2.0) / math.prod(self.test.shape[1:])
        psnr = float(torch.cat(ratios).mean())
        print(json.dumps(asdict(Report(self._cpu, images, parameters, psnr, bits))), flush=True)

    def chunks(self, images: np.ndarray) -> list[Tensor]:
        """Images uint8 [N, C, H, W] as tensors float32 in [0, 1] of `_CHUNK` rows."""
        parts = np.split(images, range(_CHUNK, len(images), _CHUNK))
        return [torch.from_numpy(part).float().div_(255.0) for part in parts]
