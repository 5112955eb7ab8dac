"""The validation of a model: its ELBO on the validation split, measured during training."""

import numpy as np
import torch
from torch import Tensor

from training.data.datasets import Split
from training.data.rows import chunk_rows
from training.data.targets import Targets
from training.model.objectives import kl_at
from training.model.vae import Vae

_SEED = 1


class Validation:
    """The validation split, measured each time with the same noise.

    Args:
        split: Its images and their classes.
        binarize: Whether bits that are drawn once are the targets, or the grey values.
        device: Where the model is.
    """

    def __init__(self, split: Split, device: torch.device, *, binarize: bool):
        self._targets = Targets(split.images, _SEED if binarize else None)
        self._labels = torch.from_numpy(np.require(split.labels, requirements="W")).to(device)
        self._device = device

    def __len__(self) -> int:
        return len(self._targets)

    @torch.inference_mode()
    def measure(self, model: Vae, *, learned_prior: bool) -> dict[str, float]:
        """Measures a model.

        Args:
            model: The model.
            learned_prior: Whether p(z) is the learned prior; otherwise it is N(0, I).

        Returns:
            `validation_elbo`, `validation_reconstruction` and `validation_kl` in
            nats per image.
        """
        noise = torch.Generator().manual_seed(_SEED)
        reconstruction = kl = 0.0
        size = chunk_rows(self._targets.shape[1:])
        for start in range(0, len(self), size):
            images = torch.from_numpy(self._targets[start : start + size]).to(self._device)
            labels = self._labels[start : start + size]
            posterior = model.encode(images, labels)
            eps = torch.randn(posterior.mean.shape, generator=noise).to(self._device)
            z = posterior.sample(eps)
            reconstruction += model.likelihood.nll(model.decode(z, labels), images).sum().item()
            kl += kl_at(model, posterior, z, learned_prior=learned_prior).sum().item()
        return {
            "validation_elbo": (reconstruction + kl) / len(self),
            "validation_reconstruction": reconstruction / len(self),
            "validation_kl": kl / len(self),
        }

    @torch.no_grad()
    def latents(self, model: Vae, most: int) -> tuple[Tensor, Tensor]:
        """Draws a latent from the posterior of each image, of `most` images at most.

        Returns:
            Latents [M, D] and the classes of the images, int64 [M].
        """
        noise = torch.Generator().manual_seed(_SEED)
        size, drawn = chunk_rows(self._targets.shape[1:]), []
        count = min(len(self), most)
        for start in range(0, count, size):
            images = torch.from_numpy(self._targets[start : min(count, start + size)])
            labels = self._labels[start : start + len(images)]
            posterior = model.encode(images.to(self._device), labels)
            eps = torch.randn(posterior.mean.shape, generator=noise).to(self._device)
            drawn.append(posterior.sample(eps))
        return torch.cat(drawn), self._labels[:count]
