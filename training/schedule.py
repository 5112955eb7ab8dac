"""The phases of a training, as a function of its length alone."""

from dataclasses import dataclass
from typing import Literal

from training.model.config import ModelConfig, TrainConfig

PhaseName = Literal["autoencoder", "prior fit", "joint", "prior refit"]


@dataclass(frozen=True)
class Phase:
    """A stretch of steps that train the same weights.

    Attributes:
        name: `autoencoder`: encoder and decoder, against N(0, I). `prior fit`: the
            prior alone, on latents that stand still. `joint`: all of them. `prior
            refit`: the prior alone again, for the final autoencoder.
        start: Its first step.
        stop: The step after its last.
        autoencoder_steps: Steps of the autoencoder done before it.
    """

    name: PhaseName
    start: int
    stop: int
    autoencoder_steps: int

    @property
    def trains_autoencoder(self) -> bool:
        """Whether encoder and decoder change in it."""
        return self.name in ("autoencoder", "joint")

    @property
    def learned_prior(self) -> bool:
        """Whether the learned prior has taken the place of N(0, I)."""
        return self.name != "autoencoder"


def plan(model: ModelConfig, train: TrainConfig, steps: int) -> tuple[Phase, ...]:
    """Lays out a training.

    Args:
        model: Whether there is a prior to learn.
        train: When and how long to fit it.
        steps: Steps of the autoencoder; those of the fits come on top.

    Returns:
        The phases, each beginning where the one before it stops.
    """
    if not model.prior.learned:
        return (Phase("autoencoder", 0, steps, 0),)
    # The latents of a plain autoencoder have no KL that a prior could take part in.
    share = 1.0 if model.posterior == "delta" else train.prior_start
    alone = round(share * steps)
    lengths: list[tuple[PhaseName, int]] = [
        ("autoencoder", alone),
        ("prior fit", round(train.prior_fit * steps) if alone < steps else 0),
        ("joint", steps - alone),
        ("prior refit", max(1, round(train.prior_refit * steps))),
    ]
    phases, start, done = [], 0, 0
    for name, length in lengths:
        if length:
            phase = Phase(name, start, start + length, done)
            phases.append(phase)
            start = phase.stop
            done += length if phase.trains_autoencoder else 0
    return tuple(phases)
