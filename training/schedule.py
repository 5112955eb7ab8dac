"""The schedule: phase, learning rate, KL weight and batch of a step, as functions of its number.

None of this is state that a checkpoint has to hold, which is how a resumed run gives the
numbers of an unbroken one.
"""

import hashlib
import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from training.model.config import ModelConfig, TrainConfig

PhaseName = Literal["autoencoder", "prior fit", "joint", "prior refit"]


@dataclass(frozen=True)
class Phase:
    """A range of steps that train the same weights.

    Attributes:
        name: `autoencoder`: encoder and decoder, with N(0, I) as the prior. `prior fit`:
            the learned prior alone, on latents of a frozen autoencoder. `joint`: all of
            them. `prior refit`: the prior alone again, for the final autoencoder.
        start: Its first step.
        stop: The step after its last.
        autoencoder_steps: Steps of the autoencoder done before `start`.
    """

    name: PhaseName
    start: int
    stop: int
    autoencoder_steps: int

    @property
    def trains_autoencoder(self) -> bool:
        """Whether this phase trains the encoder and the decoder."""
        return self.name in ("autoencoder", "joint")

    @property
    def learned_prior(self) -> bool:
        """Whether the learned prior has replaced N(0, I)."""
        return self.name != "autoencoder"


def plan(model: ModelConfig, train: TrainConfig, steps: int) -> tuple[Phase, ...]:
    """Divides a training into phases.

    Args:
        model: Says whether there is a prior to learn.
        train: When and for how long to fit it.
        steps: Steps of the autoencoder; those of the prior's fits are added to them.

    Returns:
        The phases, each beginning where the one before it stops.
    """
    if not model.prior.learned:
        return (Phase("autoencoder", 0, steps, 0),)
    # A plain autoencoder has no KL term for a prior to be trained jointly with.
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


def learning_rate_factor(done: int, steps: int, warmup: float) -> float:
    """The learning rate as a share of its peak: linear warm-up, then cosine annealing.

    Args:
        done: Steps done, below `steps`.
        steps: Length of the schedule.
        warmup: Share of the steps over which the rate rises.
    """
    rise = min(1.0, (done + 1) / max(1.0, warmup * steps))
    # Loshchilov and Hutter 2017, over the whole run and down to a hundredth of the peak.
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done / steps)))


def kl_weight(done: int, steps: int, config: TrainConfig) -> float:
    """The weight of the KL term under linear KL annealing, up to `config.beta`.

    Args:
        done: Steps of the autoencoder done.
        steps: Steps of the autoencoder in all.
        config: Beta, and the share of the steps over which the weight rises to it.
    """
    return config.beta * min(1.0, (done + 1) / max(1.0, config.kl_warmup * steps))


def derived_seed(seed: int, purpose: str) -> int:
    """A seed for one purpose of a run with `seed`: 63 bits of a hash of both."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class BatchOrder:
    """Which rows each batch holds: every epoch a new seeded permutation.

    Rows that do not fill a last batch are left out of their epoch.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int):
        self._seed = seed
        # The permutation of one epoch, int64 [rows], and the epoch that it belongs to.
        self._order = torch.empty(0, dtype=torch.int64)
        self._epoch = ("", -1)

    def rows(self, purpose: str, index: int, count: int, size: int) -> Tensor:
        """The rows of a batch.

        Args:
            purpose: What the batches are of; each purpose has its own permutations.
            index: Number of the batch, counted over all epochs.
            count: Rows to choose from.
            size: Rows in a batch, at most `count`.

        Returns:
            Row numbers, int64 [size].
        """
        epoch, batch = divmod(index, count // size)
        if (purpose, epoch) != self._epoch:
            seed = derived_seed(self._seed, f"{purpose} {epoch}")
            self._order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            self._epoch = (purpose, epoch)
        return self._order[batch * size : (batch + 1) * size]
