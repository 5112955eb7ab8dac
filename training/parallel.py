"""One training on several processes or hosts, each with a slice of every batch.

Started by `torchrun`, which says by environment who is who. The noise of a step
belongs to the whole batch and each process takes its slice of it, so the run is the
one of a single process up to the rounding of sums.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import ConfigError, OtherProcessError, TrainingError


@dataclass(frozen=True)
class Parallel:
    """This process among those of a training.

    Attributes:
        rank: Its number; 0 writes the run folder and talks.
        world: How many there are.
        local_rank: Its number on its host.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Parallel":
        """What torchrun says; alone where it did not start this process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(name not in os.environ for name in names):
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this is the one that writes and talks."""
        return self.rank == 0

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Meets the others; nothing to do for one process.

        What `wrap` returned has to be let go of before the end.

        Raises:
            TrainingError: One of the others has gone.
        """
        if self.world == 1:
            yield
            return
        # What is said about a run goes by gloo, gradients by what their device has.
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
        try:
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise TrainingError(
                "lost another process of this training; begin all of them again with --resume to "
                "go on from the last checkpoint"
            ) from error
        finally:
            # What `wrap` made holds the group too, and in circles: threads that it kept
            # alive into the end of the interpreter would abort the process.
            gc.collect()
            dist.destroy_process_group()

    @contextmanager
    def alike(self) -> Iterator[None]:
        """Lets all processes fail where one of them does, and none wait for it in vain.

        Within it they must not talk to each other.

        Raises:
            OtherProcessError: It failed on another process, which tells why.
        """
        error: Exception | None = None
        try:
            yield
        except (TrainingError, OSError) as caught:
            error = caught
        # The first one that failed is the one that tells: often they all did, and alike.
        failed = [rank for rank, bad in enumerate(self._gather(error is not None)) if bad]
        if failed and failed[0] != self.rank:
            raise OtherProcessError(f"process {failed[0]} failed") from error
        if error is not None:
            raise error

    def check_batch(self, batch_size: int) -> None:
        """Refuses a batch that cannot be shared out evenly.

        Raises:
            ConfigError: It cannot.
        """
        if batch_size % self.world:
            raise ConfigError(
                f"batch_size: got {batch_size}, wanted a multiple of the {self.world} processes"
            )

    def slice(self, batch: Tensor, axis: int = 0) -> Tensor:
        """This process's part of a batch."""
        return batch.chunk(self.world, dim=axis)[self.rank] if self.world > 1 else batch

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Returns the module with gradients averaged over all processes."""
        if self.world == 1:
            return module
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False)

    def mean(self, numbers: Tensor) -> Tensor:
        """The mean over all processes."""
        if self.world > 1:
            dist.all_reduce(numbers)
            numbers /= self.world
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether any process says so; all of them get the same answer."""
        return any(self._gather(flag))

    def share(self, value: Any) -> Any:
        """What process 0 has, on every process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def _gather(self, flag: bool) -> list[bool]:
        """What each process says."""
        if self.world == 1:
            return [flag]
        flags = torch.zeros(self.world, dtype=torch.int64)
        flags[self.rank] = flag
        dist.all_reduce(flags)
        return flags.bool().tolist()
