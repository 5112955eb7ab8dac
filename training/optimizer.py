"""The optimiser of a model: AdamW, whose gradients are clipped and whose bad steps are skipped."""

import math
from dataclasses import dataclass
from typing import Any, get_args

import torch

from training.clipping import Clipping
from training.model.likelihood import SCALE_LEARNING_RATE
from training.model.train_config import TrainConfig
from training.model.vae import Vae
from training.schedule import PhaseName


@dataclass(frozen=True)
class Update:
    """What became of a gradient.

    Attributes:
        norm: Its norm, before clipping.
        limit: The norm above which the step is skipped.
        done: Whether the weights were changed; if not, the step was skipped.
    """

    norm: float
    limit: float
    done: bool


class Optimizer:
    """AdamW over the parts of a model, each with a peak learning rate of its own.

    Args:
        model: The model.
        config: Learning rates, weight decay, and the limits of gradients.
    """

    def __init__(self, model: Vae, config: TrainConfig):
        groups: list[dict[str, Any]] = [{"params": model.autoencoder_parameters()}]
        self._peaks = [config.learning_rate]
        if model.prior is not None:
            groups.append({"params": model.prior_parameters()})
            self._peaks.append(config.prior_learning_rate)
        if scales := model.likelihood_parameters():
            groups.append({"params": scales, "weight_decay": 0.0})
            self._peaks.append(SCALE_LEARNING_RATE)
        self._weights = list(model.parameters())
        self._adam = torch.optim.AdamW(
            groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        # By phase, since what is trained differs, and with it the norms.
        self._clipping: dict[PhaseName, Clipping] = {
            phase: Clipping(config.clip_factor, config.skip_factor) for phase in get_args(PhaseName)
        }

    def clear(self) -> None:
        """Drops the gradients of the last step."""
        self._adam.zero_grad(set_to_none=True)

    def update(self, phase: PhaseName, rate: float, loss: float) -> Update:
        """Changes the weights that have a gradient, unless the loss or the gradient is bad.

        Args:
            phase: The phase, whose recent gradients this one is compared with.
            rate: The learning rates as a share of their peaks.
            loss: The loss that the gradient is of.
        """
        clipping = self._clipping[phase]
        limit, norm = clipping.limit, clipping.clip(self._weights)
        clipping.record(norm)
        good = math.isfinite(loss) and math.isfinite(norm) and norm <= limit
        if good:
            for group, peak in zip(self._adam.param_groups, self._peaks, strict=True):
                group["lr"] = peak * rate
            self._adam.step()
        return Update(norm, limit, good)

    def state_dict(self) -> dict[str, Any]:
        """The state of AdamW and the recent norms, as tensors and plain values."""
        clipping = {phase: each.state_dict() for phase, each in self._clipping.items()}
        return {"adam": self._adam.state_dict(), "clipping": clipping}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores a state that `state_dict` returned."""
        self._adam.load_state_dict(state["adam"])
        for phase, clipping in self._clipping.items():
            clipping.load_state_dict(state["clipping"][phase])
