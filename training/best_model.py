"""The best of the models that a training goes through, by their validations.

Trained for long on few images, a model knows these by heart: the learned scale of its likelihood
follows how well it fits them, and others are encoded ever worse. The training therefore ends with
the best model that was validated (as in early stopping, Prechelt 1998, but nothing is stopped: the
end of the schedule may be better than all before).
"""

from collections.abc import Mapping
from typing import Any

from training.best_weights import BestWeights
from training.model.train_config import TrainConfig
from training.model.vae import Vae


class BestModel:
    """Keeps the averaged model whose objective was the lowest on the validation split.

    A validation measures the ELBO of single images. A model that has another objective, an
    importance-weighted one, that of a Wasserstein autoencoder, or the ELBO of groups of images,
    is not judged by it, and nothing is kept.

    Args:
        config: The objective, and the weight of its KL term.
    """

    def __init__(self, config: TrainConfig):
        self._judges = config.objective == "elbo" and config.joined == 1
        self._beta = config.beta
        self._best = BestWeights()
        self._step = 0

    def offer(self, model: Vae, step: int, validation: Mapping[str, float]) -> None:
        """Keeps a model if it is the best so far.

        Args:
            model: The averaged model.
            step: Steps done.
            validation: What `Validation.measure` returned for it.
        """
        kl, nll = validation["validation_kl"], validation["validation_reconstruction"]
        if self._judges and self._best.offer(model, nll + self._beta * kl):
            self._step = step

    def restore(self, step: int, *models: Vae) -> int | None:
        """Gives models the best weights, unless those of this step are the best.

        Returns:
            The number of steps done when the weights were kept; None if nothing was changed.
        """
        if not self._step or self._step == step:
            return None
        self._best.restore(*models)
        return self._step

    def state_dict(self) -> dict[str, Any]:
        """What was kept, as tensors and plain values."""
        return {"step": self._step, "best": self._best.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._step = state["step"]
        self._best.load_state_dict(state["best"])
