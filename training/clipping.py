"""Gradient clipping, relative to the gradients of the run so far."""

import math
import statistics
from collections.abc import Sequence

import torch
from torch import nn

#: Number of recent steps that a gradient is compared with.
WINDOW = 100
#: Steps without which none is skipped: the norms of a run's first steps can grow by magnitudes as
#: its layers begin to work together, and their median says little yet.
FIRST_STEPS = 50


class Clipping:
    """Limits of the norm of a gradient: multiples of the median norm of recent steps.

    The norm of a good gradient depends on the number of pixels, the widths of the network and the
    likelihood, so no fixed limit fits all runs. The median follows the run, and a few large norms
    do not move it. A large norm is recorded like any other, so a run in which they stay large
    goes on once they are the greater part.

    Args:
        clip_factor: Multiple of the median that a larger gradient is scaled down to.
        skip_factor: Multiple of the median above which a step is skipped.
    """

    def __init__(self, clip_factor: float, skip_factor: float):
        self._clip_factor = clip_factor
        self._skip_factor = skip_factor
        # Norms of the last steps, at most WINDOW, oldest first; all are finite.
        self._norms: list[float] = []

    @property
    def limit(self) -> float:
        """The norm above which a step is skipped; infinite in the first steps."""
        return math.inf if len(self._norms) < FIRST_STEPS else self._skip_factor * self._median

    @property
    def _median(self) -> float:
        return statistics.median(self._norms) if self._norms else math.inf

    def clip(self, weights: Sequence[nn.Parameter]) -> float:
        """Scales the gradient of weights down to `clip_factor` times the median.

        The first gradient has nothing to be compared with, and needs no limit: Adam's first update
        is as large as the learning rate whatever the gradient. From the second step on a gradient
        that is far larger than those before would slow Adam down for a thousand steps, as long as
        its mean square remembers it.

        Args:
            weights: The weights, of which those without a gradient are left out.

        Returns:
            The norm of the gradient before.
        """
        gradients = [weight.grad for weight in weights if weight.grad is not None]
        norm = float(nn.utils.get_total_norm(gradients))
        longest = self._clip_factor * self._median
        # Most gradients need no clipping, and multiplying them by 1 would take as long as
        # computing their norm.
        if longest < norm < math.inf:
            torch._foreach_mul_(gradients, longest / norm)
        return norm

    def record(self, norm: float) -> None:
        """Adds the norm of a step, before clipping, to the recent ones, unless it is not finite."""
        if math.isfinite(norm):
            self._norms = [*self._norms[1 - WINDOW :], norm]

    def state_dict(self) -> dict[str, list[float]]:
        """The recent norms."""
        return {"norms": list(self._norms)}

    def load_state_dict(self, state: dict[str, list[float]]) -> None:
        """Restores the norms that `state_dict` returned."""
        self._norms = list(state["norms"])
