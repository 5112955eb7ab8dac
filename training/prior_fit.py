"""Training data of a learned prior: latents drawn from the posteriors of the training set."""

import math

import torch
from torch import Tensor

from common.pixels import to_unit
from training.data.datasets import Split
from training.data.rows import chunk_rows, sample_rows
from training.data.targets import binarize
from training.model.mixture import fit_mixture
from training.model.prior import Prior
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.schedule import BatchOrder, Phase, derived_seed

# Largest number of binarizations of the training set that are encoded, which takes most of the
# time of a fit.
_MAX_VIEWS = 4
# About how often a fit draws from each posterior.
_DRAWS_PER_POSTERIOR = 8
_MIN_POSTERIORS = 10_000
# Number of random posteriors to time a phase with. Fewer would be fitted in a time that depends
# more on the size of the mixture than on their number.
_PRETENDED = 1_024
# Most values of all means together: 64 MiB, of which fitting the mixture takes several times.
_MOST_VALUES = 1 << 24


class PriorFit:
    """The posteriors of a frozen encoder, and seeded batches of latents drawn from them.

    The training set is encoded only once per phase, since encoding images at every step
    would cost as much as training the autoencoder. Every batch draws fresh latents.

    Args:
        split: The images to encode and their labels.
        config: Batch size, seed, and whether images are binarized.
        device: Where to encode and keep the posteriors.
        latent_dim: D, the number of latent dimensions.

    Attributes:
        phase: Name of the phase that the posteriors are for; empty before the first one.
    """

    def __init__(self, split: Split, config: TrainConfig, device: torch.device, latent_dim: int):
        self.phase = ""
        self._split = split
        self._config = config
        self._device = device
        self._latent_dim = latent_dim
        self._order = BatchOrder(config.seed)
        # N posteriors: means [N, D]; standard deviations [N, D], None for a plain autoencoder;
        # and labels int64 [N].
        self._mean = torch.empty(0)
        self._std: Tensor | None = None
        self._labels = torch.empty(0, dtype=torch.int64)

    def images_to_encode(self, phase: Phase) -> int:
        """Number of images that `encode` encodes for a phase; each binarization counts as one."""
        return math.prod(self._views(phase))

    @torch.inference_mode()
    def encode(self, model: Vae, phase: Phase) -> None:
        """Encodes the training set and keeps the posteriors.

        Args:
            model: The frozen autoencoder.
            phase: The phase that fits the prior; a longer one gets more posteriors.
        """
        count, views = self._views(phase)
        seed = derived_seed(self._config.seed, "posteriors")
        rows = sample_rows(len(self._split.images), count, seed)
        size = chunk_rows(self._split.images.shape[1:])
        labels = torch.from_numpy(self._split.labels[rows]).to(self._device)
        means, log_vars = [], []
        for view in range(views):
            seed = derived_seed(self._config.seed, f"view {view} {phase.name}")
            for start in range(0, count, size):
                chunk = self._split.images[rows[start : start + size]]
                binarized = self._config.binarize
                pixels = binarize(chunk, seed + start) if binarized else to_unit(chunk)
                posterior = model.encode(
                    torch.from_numpy(pixels).to(self._device), labels[start : start + size]
                )
                means.append(posterior.mean)
                if posterior.log_var is not None:
                    log_vars.append(posterior.log_var)
        # Clones, since tensors of inference mode cannot take part in a training step.
        self._keep(
            phase,
            torch.cat(means).clone(),
            torch.exp(0.5 * torch.cat(log_vars)).clone() if log_vars else None,
            labels.repeat(views),
        )

    def excess(self, phase: Phase) -> float:
        """How many times as many latents a phase's mixture is fitted to as are pretended now."""
        count = self.images_to_encode(phase)
        return count * self._draws(count) / len(self._mean)

    def pretend(self, phase: Phase) -> None:
        """Keeps random posteriors in place of encoded ones, for timing a phase."""
        count = max(_PRETENDED, self._config.prior_batch_size)
        mean = torch.randn(count, self._latent_dim).to(self._device)
        labels = torch.zeros(len(mean), dtype=torch.int64, device=self._device)
        self._keep(phase, mean, None, labels)

    @property
    def largest(self) -> float:
        """The largest posterior mean or standard deviation; NaN if one is NaN."""
        parts = [self._mean.abs().max()] + ([] if self._std is None else [self._std.max()])
        return float(torch.stack(parts).max())

    def fit_mixture(self, prior: Prior) -> None:
        """Fits a prior's mixture by expectation maximisation to draws from the posteriors.

        One draw from each is enough where there are many; of a few, one draw each would be taken
        for points, and every other draw would be far from all components.
        """
        seed = derived_seed(self._config.seed, f"mixture {self.phase}")
        count = len(self._mean)
        draws = 1 if self._std is None else self._draws(count)
        rows = torch.arange(count, device=self._device).repeat(draws)
        z = self._draw(rows, torch.Generator().manual_seed(seed))
        fit_mixture(prior, z, self._labels[rows], seed, draws)

    def batch(self, index: int, noise: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draws a batch of latents.

        Args:
            index: Index of the batch within the phase.
            noise: Generator of the noise of the draws.

        Returns:
            Latents [B, D] and their labels, int64 [B].
        """
        count = len(self._mean)
        size = min(self._config.prior_batch_size, count)
        rows = self._order.rows(f"latents {self.phase}", index, count, size).to(self._device)
        return self._draw(rows, noise), self._labels[rows]

    def _views(self, phase: Phase) -> tuple[int, int]:
        """Number of images to encode for a phase, and of binarizations of each image."""
        needed = (phase.stop - phase.start) * self._config.prior_batch_size
        wanted = max(_MIN_POSTERIORS, math.ceil(needed / _DRAWS_PER_POSTERIOR))
        wanted = max(1, min(wanted, _MOST_VALUES // self._latent_dim))
        images = len(self._split.images)
        views = min(_MAX_VIEWS, math.ceil(wanted / images)) if self._config.binarize else 1
        return min(images, wanted), views

    def _draws(self, posteriors: int) -> int:
        """Number of draws from each posterior that a mixture is fitted to."""
        return math.ceil(_MIN_POSTERIORS / posteriors)

    def _keep(self, phase: Phase, mean: Tensor, std: Tensor | None, labels: Tensor) -> None:
        self.phase, self._mean, self._std, self._labels = phase.name, mean, std, labels

    def _draw(self, rows: Tensor, noise: torch.Generator) -> Tensor:
        """Draws once from each of the posteriors with the indices `rows`: [len(rows), D]."""
        mean = self._mean[rows]
        if self._std is None:
            return mean
        return mean + self._std[rows] * torch.randn(mean.shape, generator=noise).to(mean.device)
