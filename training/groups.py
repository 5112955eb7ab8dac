"""Batches of groups: images of one thing that share a latent, such as the letters of a typeface."""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.data.datasets import Split
from training.errors import ConfigError
from training.model.train_config import TrainConfig
from training.schedule import BatchOrder, derived_seed

# Most targets of a group in a step. More of one group teach less than as many of others.
_TARGETS = 8
# Share of the groups of which one image is shown, as callers will most often.
_SINGLE = 0.5


@dataclass(frozen=True)
class GroupBatch:
    """The images of a step, J + M of each of G groups.

    Attributes:
        rows: Indices of the images, group after group, int64 [G * (J + M)]. The first J of a group
            are to be shown to the encoder, the others are the targets. They are chosen apart, so
            an image is shown and a target as often as chance has it: the mean over the targets is
            that over the group.
        shown: Which of the J are shown, the first ones of each group: bool [G, J].
        sizes: Number of images that each group has, float32 [G].
    """

    rows: Tensor
    shown: Tensor
    sizes: Tensor


class Groups:
    """The groups of the training images, and those that a step takes.

    Groups take turns, as images do elsewhere: each is taken as often as any other, whatever its
    size. Batches are functions of the seed and the step.

    Args:
        split: The training images.
        config: Seed, images per step, and `joined`.

    Attributes:
        targets: M, the targets of a group.
        images: Number of targets per step, G * M: at most `batch_size`.

    Raises:
        ConfigError: The images have no groups.
    """

    def __init__(self, split: Split, config: TrainConfig):
        if split.groups is None:
            raise ConfigError(
                f"joined: got {config.joined}, wanted 1: the data does not say which images are of "
                "one thing, as npy:IMAGES,LABELS,GROUPS does"
            )
        self._seed = config.seed
        self._joined = config.joined
        self._members = _members_of(split.groups)
        sizes = [len(members) for members in self._members]
        # Where most groups are smaller, their images would be targets twice.
        self.targets = min(_TARGETS, config.batch_size, int(np.median(sizes)))
        self._count = min(config.batch_size // self.targets, len(sizes))
        self.images = self._count * self.targets
        self._order = BatchOrder(config.seed)

    def batch(self, index: int) -> GroupBatch:
        """Chooses the groups of a batch, and their images.

        Args:
            index: Number of batches before, counted over the whole training.
        """
        chosen = self._order.rows("groups", index, len(self._members), self._count)
        noise = torch.Generator().manual_seed(derived_seed(self._seed, f"images of batch {index}"))
        rows, counts, sizes = [], [], []
        for group in chosen.tolist():
            members = self._members[group]
            rows += [_some(members, self._joined, noise), _some(members, self.targets, noise)]
            counts.append(min(self._shown(noise), len(members)))
            sizes.append(len(members))
        shown = torch.arange(self._joined) < torch.tensor(counts)[:, None]
        return GroupBatch(torch.cat(rows), shown, torch.tensor(sizes, dtype=torch.float32))

    def _shown(self, noise: torch.Generator) -> int:
        """Number of images to show: half of the time 1, else 2 to J."""
        if torch.rand((), generator=noise) < _SINGLE:
            return 1
        return int(torch.randint(2, self._joined + 1, (), generator=noise))


def _members_of(groups: NDArray[np.int64]) -> list[Tensor]:
    """The indices of the images of each group, int64 [n]."""
    _, sizes = np.unique(groups, return_counts=True)
    order = torch.from_numpy(np.argsort(groups, kind="stable"))
    return list(torch.split(order, sizes.tolist()))


def _some(members: Tensor, count: int, noise: torch.Generator) -> Tensor:
    """Chooses `count` members at random, each again only after all the others."""
    order = torch.randperm(len(members), generator=noise)
    return members[order[torch.arange(count) % len(members)]]
