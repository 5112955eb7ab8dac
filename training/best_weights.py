"""The best weights of a module that training goes through, by its loss on held-out data."""

import math
from typing import Any

from torch import Tensor, nn


class BestWeights:
    """Keeps the weights of the best module that it was offered.

    Attributes:
        loss: Loss of that module; infinite if there is none.
    """

    def __init__(self) -> None:
        self.loss = math.inf
        self._weights: dict[str, Tensor] = {}

    def offer(self, module: nn.Module, loss: float) -> bool:
        """Keeps the weights of a module if its loss is the lowest so far; returns whether it is."""
        if not loss < self.loss:  # nor if it is not a number
            return False
        self.loss = loss
        self._weights = {key: value.clone() for key, value in module.state_dict().items()}
        return True

    def forget(self) -> None:
        """Forgets what was offered."""
        self.loss, self._weights = math.inf, {}

    def restore(self, *modules: nn.Module) -> None:
        """Gives modules the weights that were kept, if there are any."""
        for module in modules if self._weights else ():
            module.load_state_dict(self._weights)

    def state_dict(self) -> dict[str, Any]:
        """What was kept, as tensors and plain values."""
        return {"loss": self.loss, "weights": self._weights}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.loss, self._weights = state["loss"], dict(state["weights"])
