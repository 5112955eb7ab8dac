"""Data-parallel training: several processes or hosts, each with a slice of every batch.

The processes are started by `torchrun`, which sets their ranks in the environment. The
noise of a step is drawn for the whole batch before it is sliced, so the results equal
those of a single process up to the rounding of sums, but for terms of pairs of images: the MMD
of a Wasserstein autoencoder and the offset of classes are of the pairs within each slice.
"""

import gc
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from training.errors import ConfigError, OtherProcessError, TrainingError

# Longest wait for another process, which may have pictures to decode that are in the cache of this
# host already, or the finished model to measure. One that has died is not waited for: its
# connections are closed.
_PATIENCE = timedelta(hours=1)


@dataclass(frozen=True)
class Parallel:
    """This process's place in a data-parallel training.

    Attributes:
        rank: Rank of this process among all processes; rank 0 is the leader.
        world: World size, the number of processes.
        local_rank: Rank of this process among those on its host.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0

    @classmethod
    def from_environment(cls) -> "Parallel":
        """Reads torchrun's environment variables; without them, this is the only process."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if any(name not in os.environ for name in names):
            return cls()
        return cls(*(int(os.environ[name]) for name in names))

    @property
    def leads(self) -> bool:
        """Whether this process is the leader, which writes the run folder and prints."""
        return self.rank == 0

    @contextmanager
    def process_group(self) -> Iterator[None]:
        """Joins the process group for the duration of the context.

        Does nothing if there is only one process. All references to modules from `wrap` must be
        dropped before the context ends.

        Raises:
            TrainingError: Another process has died.
        """
        if self.world == 1:
            yield
            return
        # Objects and flags go through Gloo, gradients through the backend of their device.
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:
            dist.init_process_group(backend, timeout=_PATIENCE)
            yield
        except RuntimeError as error:
            if not isinstance(error, dist.DistError) and "gloo" not in str(error):
                raise
            raise TrainingError(
                "lost another process of this training; start all of them again with --resume to "
                "continue from the last checkpoint"
            ) from error
        finally:
            # DDP modules hold the group, and reference cycles keep them alive. Their threads
            # would abort the process if they were still running when the interpreter exits.
            gc.collect()
            if dist.is_initialized():
                dist.destroy_process_group()

    @contextmanager
    def fail_together(self) -> Iterator[None]:
        """If one process fails in the context, raises in all, so that none waits for it forever.

        The context must not contain collective operations.

        Raises:
            OtherProcessError: Another process failed; that process prints the reason.
        """
        error: Exception | None = None
        try:
            yield
        except (TrainingError, OSError) as caught:
            error = caught
        # Only the lowest failed rank reports its error, since often all fail for one reason.
        failed = [rank for rank, bad in enumerate(self._gather(error is not None)) if bad]
        if failed and failed[0] != self.rank:
            raise OtherProcessError(f"process {failed[0]} failed") from error
        if error is not None:
            raise error

    def check_batch(self, batch_size: int, together: int = 1) -> None:
        """Checks that a batch divides evenly among the processes.

        Args:
            batch_size: Number of images.
            together: Number of consecutive images that one process has to take.

        Raises:
            ConfigError: `batch_size` is not a multiple of both numbers multiplied.
        """
        if batch_size % (together * self.world):
            of_groups = f" times the {together} images of a group" if together > 1 else ""
            raise ConfigError(
                f"batch_size: got {batch_size}, wanted a multiple of the {self.world} processes"
                f"{of_groups}"
            )

    def slice(self, batch: Tensor, axis: int = 0) -> Tensor:
        """Returns this process's slice of a batch along an axis."""
        return batch.chunk(self.world, dim=axis)[self.rank] if self.world > 1 else batch

    def wrap(self, module: nn.Module, device: torch.device) -> nn.Module:
        """Wraps a module so that its gradients are averaged over all processes."""
        if self.world == 1:
            return module
        devices = [device.index] if device.type == "cuda" else None
        return DistributedDataParallel(module, device_ids=devices, forward_sync_buffers=False)

    def mean(self, numbers: Tensor) -> Tensor:
        """Returns the elementwise mean over all processes, written into `numbers`."""
        if self.world > 1:
            dist.all_reduce(numbers)
            numbers /= self.world
        return numbers

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in at least one process; all processes get the same answer."""
        return any(self._gather(flag))

    def broadcast(self, value: Any) -> Any:
        """Returns the value of rank 0 in every process."""
        if self.world == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]

    def _gather(self, flag: bool) -> list[bool]:
        """Returns the flags of all processes, in order of their ranks."""
        if self.world == 1:
            return [flag]
        flags = torch.zeros(self.world, dtype=torch.int64)
        flags[self.rank] = flag
        dist.all_reduce(flags)
        return flags.bool().tolist()
