"""Batches of training images: gathered from memory or from disk, augmented, and with noise.

Noise is drawn for the whole batch, of which a process computes its slice, so that it is the same
however many processes share the work.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from training.data.datasets import Split
from training.data.rows import Rows
from training.model.train_config import TrainConfig
from training.parallel import Parallel
from training.schedule import derived_seed

# Largest shift, as a share of the image's side.
_SHIFT = 1 / 16
# Largest rotation in radians, shear, and logarithm of the scale of each axis.
_ROTATION, _SHEAR, _SCALE = 0.1, 0.1, 0.05
# Standard deviation of the displacement of a knot of an elastic distortion, as a share of the side,
# and knots along each side.
_DISPLACEMENT, _KNOTS = 0.03, 5
# Where grey values are chances of bits, interpolation leaves more to chance: the bits of a digit of
# MNIST have an entropy of 46 nats, those of a warped one 56, and with this contrast 44.
_CONTRAST = 1.15
_ALONE = Parallel()


class Batches:
    """The training images and their labels, from which batches are gathered.

    Args:
        split: The images. Those in memory are copied to the device once, the others are read
            from disk for each batch.
        config: The seed, and how to augment.
        device: Where the batches are used.
    """

    def __init__(self, split: Split, config: TrainConfig, device: torch.device):
        self._config = config
        self._device = device
        self._images: Rows | Tensor
        if isinstance(split.images, Rows):
            self._images = split.images
        else:
            self._images = torch.from_numpy(np.require(split.images, requirements="W")).to(device)
        self._labels = torch.from_numpy(np.require(split.labels, requirements="W")).to(device)

    def __len__(self) -> int:
        return len(self._images)

    def read(
        self, rows: Tensor, step: int, parallel: Parallel = _ALONE, *, augmented: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Gathers this process's slice of a batch; no other image is read.

        Args:
            rows: Indices of the images of all W processes together, int64 [W * B], on the CPU.
            step: Step of the run: the noise of the augmentation is a function of the seed and
                the step.
            parallel: This process's place among those that share the work.
            augmented: Whether to change the images as configured.

        Returns:
            Images, uint8 [B, C, H, W], and labels, int64 [B], on the device.
        """
        rows = parallel.slice(rows)
        there = rows.to(self._device)
        if isinstance(self._images, Rows):
            images = torch.from_numpy(self._images[rows.numpy()]).to(self._device)
        else:
            # index_select copies whole images where indexing would go pixel by pixel.
            images = self._images.index_select(0, there)
        return (self._augmented(images, step, parallel) if augmented else images), self._labels[
            there
        ]

    def _augmented(self, images: Tensor, step: int, parallel: Parallel) -> Tensor:
        config = self._config
        originals = images
        contrast = _CONTRAST if config.binarize else 1.0
        changes: dict[str, Callable[[Tensor, torch.Generator, Parallel], Tensor]] = {
            "flip": flipped,
            "shift": shifted,
            "warp": partial(warped, contrast=contrast),
            "elastic": partial(distorted, contrast=contrast),
        }
        for name in config.augment:
            noise = torch.Generator().manual_seed(
                derived_seed(config.seed, f"{name} of step {step}")
            )
            images = changes[name](images, noise, parallel)
        if config.augment_share == 1.0:
            return images
        noise = torch.Generator().manual_seed(
            derived_seed(config.seed, f"augmented in step {step}")
        )
        count = len(images) * parallel.world
        chosen = parallel.slice(torch.rand(count, 1, 1, 1, generator=noise) < config.augment_share)
        return torch.where(chosen.to(images.device), images, originals)


def corrupted(
    images: Tensor,
    config: TrainConfig,
    middle: Tensor,
    noise: torch.Generator,
    parallel: Parallel = _ALONE,
) -> Tensor:
    """Adds the configured noise to what the encoder sees; returns new images.

    Args:
        images: Float [B, C, H, W] in [0, 1].
        config: Kind and amount of the noise, above 0.
        middle: What a hidden pixel looks like, [C, 1, 1]: the centre of the encoder's input, which
            is 0 to it.
        noise: Generator of the noise.
        parallel: This process's place among those that share the batch.
    """
    count = len(images) * parallel.world
    if config.noise_kind == "gaussian":
        drawn = parallel.slice(torch.randn(count, *images.shape[1:], generator=noise))
        return images + config.noise * drawn.to(images.device)
    shape = (count, 1, *images.shape[2:])
    hidden = parallel.slice(torch.rand(shape, generator=noise) < config.noise)
    return torch.where(hidden.to(images.device), middle, images)


def flipped(images: Tensor, noise: torch.Generator, parallel: Parallel = _ALONE) -> Tensor:
    """Mirrors each image, [B, C, H, W], left to right with a probability of one half.

    Args:
        images: The slice of a batch that this process has.
        noise: Generator of the noise.
        parallel: This process's place among those that share the batch.
    """
    count = len(images) * parallel.world
    mirrored = parallel.slice(torch.rand(count, 1, 1, 1, generator=noise) < 0.5)
    return torch.where(mirrored.to(images.device), images.flip(3), images)


def shifted(images: Tensor, noise: torch.Generator, parallel: Parallel = _ALONE) -> Tensor:
    """Moves each image, [B, C, H, W], by up to a 16th of its sides; edges are repeated.

    Args:
        images: The slice of a batch that this process has.
        noise: Generator of the noise.
        parallel: This process's place among those that share the batch.
    """
    places = []
    for side in images.shape[2:]:
        most = max(1, round(_SHIFT * side))
        count = len(images) * parallel.world
        offsets = parallel.slice(torch.randint(-most, most + 1, (count, 1), generator=noise))
        places.append((torch.arange(side) + offsets).clamp(0, side - 1).to(images.device))
    rows, columns = places
    each = torch.arange(len(images), device=images.device)[:, None, None]
    # Indexed with the channels last, each pixel is one contiguous read.
    moved = images.permute(0, 2, 3, 1)[each, rows[:, :, None], columns[:, None, :]]
    return moved.permute(0, 3, 1, 2).contiguous()


def warped(
    images: Tensor,
    noise: torch.Generator,
    parallel: Parallel = _ALONE,
    *,
    contrast: float = 1.0,
) -> Tensor:
    """Rotates, shears and scales each image, uint8 [B, C, H, W], about its centre.

    Edges are repeated. The interpolation is bicubic, as a linear one would blur the strokes.

    Args:
        images: The slice of a batch that this process has.
        noise: Generator of the noise.
        parallel: This process's place among those that share the batch.
        contrast: What differences from the middle grey are multiplied by afterwards.
    """
    count = len(images) * parallel.world
    drawn = parallel.slice(torch.rand(count, 4, generator=noise) * 2.0 - 1.0)
    angle, shear = _ROTATION * drawn[:, 0], _SHEAR * drawn[:, 1]
    across, down = (_SCALE * drawn[:, 2:]).exp().unbind(1)
    sine, cosine = angle.sin(), angle.cos()
    # Where a place of the result comes from: scaled, then sheared along the rows, then rotated.
    columns = torch.stack([across * cosine, down * (shear * cosine - sine)], dim=1)
    rows = torch.stack([across * sine, down * (shear * sine + cosine)], dim=1)
    matrices = torch.stack([columns, rows], dim=1)
    # grid_sample measures both sides from -1 to 1, whatever their lengths.
    height, width = images.shape[2:]
    matrices[:, 0, 1] *= height / width
    matrices[:, 1, 0] *= width / height
    matrices = F.pad(matrices, (0, 1)).to(images.device)
    grid = F.affine_grid(matrices, list(images.shape), align_corners=False)
    return _sampled(images, grid, contrast)


def distorted(
    images: Tensor,
    noise: torch.Generator,
    parallel: Parallel = _ALONE,
    *,
    contrast: float = 1.0,
) -> Tensor:
    """Distorts each image, uint8 [B, C, H, W], elastically (Simard, Steinkraus and Platt 2003).

    The displacements are random at the knots of a coarse grid and interpolated between them. Edges
    are repeated.

    Args:
        images: The slice of a batch that this process has.
        noise: Generator of the noise.
        parallel: This process's place among those that share the batch.
        contrast: What differences from the middle grey are multiplied by afterwards.
    """
    count = len(images) * parallel.world
    # A side is 2 long in the coordinates of grid_sample.
    moves = 2.0 * _DISPLACEMENT * torch.randn(count, 2, _KNOTS, _KNOTS, generator=noise)
    field = F.interpolate(
        parallel.slice(moves).to(images.device),
        size=list(images.shape[2:]),
        mode="bicubic",
        align_corners=True,
    )
    same = torch.eye(2, 3, device=images.device).expand(len(images), 2, 3)
    grid = F.affine_grid(same, list(images.shape), align_corners=False)
    return _sampled(images, grid + field.permute(0, 2, 3, 1), contrast)


def _sampled(images: Tensor, grid: Tensor, contrast: float) -> Tensor:
    """Interpolates images, uint8 [B, C, H, W], at the places of a grid, [B, H, W, 2]."""
    moved = F.grid_sample(
        images.float(), grid, mode="bicubic", padding_mode="border", align_corners=False
    )
    if contrast != 1.0:
        moved = (moved - 127.5) * contrast + 127.5
    return moved.round_().clamp_(0, 255).to(torch.uint8)
