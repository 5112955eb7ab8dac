"""The steps that fit a learned prior to the latents of a frozen autoencoder."""

from typing import Any

import torch
from torch import Tensor

from training.best_prior import BestPrior
from training.data.datasets import Split
from training.model.objectives import prior_nlls
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.prior_fit import PriorFit
from training.schedule import Phase
from training.validation import Validation

# Number of times that a fit of the prior is compared with itself, and of held-out latents for that.
_TRIALS = 16
_HELD_OUT = 2_048


class PriorSteps:
    """Fits the prior of a model, and keeps the best prior that each fit goes through.

    Args:
        split: The training images.
        validation: The validation split, whose latents judge a fit.
        config: Batch size, seed, and weight of log p(label|z).
        device: Where the model is.
        latent_dim: D.

    Attributes:
        posteriors: The posteriors of the training images, and batches of latents drawn from them.
    """

    def __init__(
        self,
        split: Split,
        validation: Validation,
        config: TrainConfig,
        device: torch.device,
        latent_dim: int,
    ):
        self.posteriors = PriorFit(split, config, device, latent_dim)
        self._validation = validation
        self._label_weight = config.label_weight
        self._best = BestPrior(config.label_weight)

    def encode(self, average: Vae, phase: Phase) -> None:
        """Encodes the training and the validation images.

        Args:
            average: The averaged model, with a frozen autoencoder.
            phase: The phase that fits the prior.
        """
        self.posteriors.encode(average, phase)
        self._best.judge_by(*self._validation.latents(average, _HELD_OUT))

    def begin(self, model: Vae, average: Vae, *, learned: bool) -> None:
        """Fits the mixture anew, which a phase begins with.

        Args:
            model: The model.
            average: The averaged model.
            learned: Whether the prior was trained before, and may be the best.
        """
        assert model.prior is not None
        assert average.prior is not None
        self._best.forget()
        if learned:
            self._best.offer(average)
        self.posteriors.fit_mixture(model.prior)
        average.prior.load_state_dict(model.prior.state_dict())
        self._best.offer(average)

    def loss(self, model: Vae, index: int, noise: torch.Generator) -> tuple[Tensor, float]:
        """The loss of the prior on a batch of latents, and its mean -log p(z), in nats.

        Args:
            model: The model.
            index: Index of the batch within the phase.
            noise: Generator of the noise of the draws.
        """
        z, labels = self.posteriors.batch(index, noise)
        nll, label_nll = prior_nlls(model, z, labels)
        return (nll + self._label_weight * label_nll).mean(), nll.mean().item()

    def judge(self, phase: Phase, step: int, model: Vae, average: Vae) -> None:
        """Compares the averaged prior with earlier ones of its fit, which ends with the best.

        Args:
            phase: The phase.
            step: Steps of the run that are done.
            model: The model.
            average: The averaged model.
        """
        done, steps = step - phase.start, phase.stop - phase.start
        if done % max(1, steps // _TRIALS) == 0 or step == phase.stop:
            self._best.offer(average)
        if step == phase.stop:
            self._best.restore(model, average)

    def state_dict(self) -> dict[str, Any]:
        """The best prior so far, as tensors and plain values."""
        return self._best.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._best.load_state_dict(state)
