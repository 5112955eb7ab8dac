"""The schedule: phase, learning rate, KL weight and batch of a step, as functions of its number.

A checkpoint therefore need not hold any of these, and a resumed run gives the same results
as an uninterrupted one.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from training.model.config import ModelConfig
from training.model.train_config import TrainConfig

#: Least number of steps over which the learning rate rises. Adam's first updates move all weights
#: alike, whatever their gradients, and a deep network multiplies that.
LEAST_WARMUP = 20

# Approximate number of validations in a run, but for the early ones.
_VALIDATIONS = 20

PhaseName = Literal["autoencoder", "prior fit", "joint", "prior refit"]


@dataclass(frozen=True)
class Phase:
    """A range of steps that train the same weights.

    Attributes:
        name: What is trained. `autoencoder`: encoder and decoder, with N(0, I) as the prior.
            `prior fit`: the learned prior alone, on latents of a frozen autoencoder. `joint`:
            encoder, decoder and prior. `prior refit`: the prior alone again, for the final
            autoencoder.
        start: First step of the phase.
        stop: First step after the phase.
        autoencoder_steps: Number of steps before `start` that train the autoencoder.
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
        model: The architecture, with the prior.
        train: When and for how long to fit a learned prior.
        steps: Number of steps that train the autoencoder; the phases that only fit the prior
            come on top.

    Returns:
        The phases in order, without gaps.
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


def validation_steps(phases: Sequence[Phase], epoch: int) -> frozenset[int]:
    """The steps after which a model is validated.

    They are spread evenly, and each phase ends with one. Before the first of them there are some at
    its half, its quarter, and so on down to an epoch: few images may be known by heart by then.

    Args:
        phases: The phases of the run.
        epoch: Number of steps that see as many images as there are.
    """
    total = phases[-1].stop
    interval = max(1, total // _VALIDATIONS)
    steps = set(range(interval, total + 1, interval)) | {phase.stop for phase in phases}
    early = interval // 2
    while early >= epoch:
        steps.add(early)
        early //= 2
    return frozenset(steps)


def learning_rate_factor(done: int, steps: int, warmup: float) -> float:
    """The learning rate as a share of its peak: linear warm-up, then cosine annealing.

    Args:
        done: Number of steps done, below `steps`.
        steps: Length of the schedule.
        warmup: Share of the steps over which the rate rises, though in no fewer than
            `LEAST_WARMUP` steps.
    """
    rise = min(1.0, (done + 1) / max(LEAST_WARMUP, warmup * steps))
    # Loshchilov and Hutter 2017, over the whole run and down to a hundredth of the peak.
    return rise * (0.01 + 0.99 * 0.5 * (1.0 + math.cos(math.pi * done / steps)))


def kl_weight(done: int, steps: int, config: TrainConfig) -> float:
    """The weight of the KL term under linear KL annealing, up to `config.beta`.

    Args:
        done: Number of steps done that train the autoencoder.
        steps: Total number of such steps.
        config: Beta, and the share of the steps over which the weight rises to it.
    """
    return config.beta * min(1.0, (done + 1) / max(1.0, config.kl_warmup * steps))


def even_parts(phase: Phase, steps: int, config: TrainConfig) -> list[range]:
    """Divides the steps of a phase where they begin to cost more or less.

    Args:
        phase: The phase.
        steps: Number of steps that train the autoencoder.
        config: When `iwae` takes more draws, and until when images are augmented.
    """
    cuts = {phase.start, phase.stop}
    if phase.trains_autoencoder:
        turns = [math.ceil(share * steps) for share in (config.iwae_from, config.augment_until)]
        places = {phase.start + turn - phase.autoencoder_steps for turn in turns}
        cuts |= {place for place in places if phase.start < place < phase.stop}
    return [range(*pair) for pair in pairwise(sorted(cuts))]


def draws_of(done: int, steps: int, config: TrainConfig) -> int:
    """The number of draws of z per image.

    Args:
        done: Number of steps done that train the autoencoder.
        steps: Total number of such steps.
        config: Its `draws`, and the share of the steps with one draw.
    """
    if config.objective == "iwae" and done < config.iwae_from * steps:
        return 1
    return config.draws


def derived_seed(seed: int, purpose: str) -> int:
    """Derives a seed for one purpose from a run's seed: 63 bits of a hash of both."""
    digest = hashlib.blake2b(f"{seed} {purpose}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


class BatchOrder:
    """Chooses the rows of each batch, by a new seeded permutation for every epoch.

    An incomplete last batch of an epoch is dropped.

    Args:
        seed: Seed of the run.
    """

    def __init__(self, seed: int):
        self._seed = seed
        # The last permutation, int64 [rows], and the purpose and epoch that it is for.
        self._order = torch.empty(0, dtype=torch.int64)
        self._epoch = ("", -1)

    def rows(self, purpose: str, index: int, count: int, size: int) -> Tensor:
        """Returns the indices of the rows of a batch.

        Args:
            purpose: Name of a sequence of batches; each sequence has its own permutations.
            index: Index of the batch, counted over all epochs.
            count: Number of rows to choose from.
            size: Number of rows in a batch, at most `count`.

        Returns:
            Row indices, int64 [size].
        """
        epoch, batch = divmod(index, count // size)
        if (purpose, epoch) != self._epoch:
            seed = derived_seed(self._seed, f"{purpose} {epoch}")
            self._order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
            self._epoch = (purpose, epoch)
        return self._order[batch * size : (batch + 1) * size]
