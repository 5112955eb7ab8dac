"""Quality of a model's reconstructions beside the images that they are of."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from common.pixels import to_bytes, to_unit
from common.quality import psnr, ssim
from training.data.rows import Images
from training.measure.elbo import Autoencoder

# Test images that are reconstructed; a mean over more says nothing new.
_MOST_IMAGES = 1_000
_CHUNK = 250


@dataclass(frozen=True)
class Quality:
    """Likeness of reconstructions, decoded from posterior means, to their images.

    Attributes:
        psnr: Peak signal-to-noise ratio in dB, mean over the images.
        ssim: Structural similarity (Wang et al. 2004), mean over the images.
        reconstructed_images: Number of images.
    """

    psnr: float
    ssim: float
    reconstructed_images: int


def measure_quality(
    model: Autoencoder,
    decode: Callable[..., NDArray[np.float32]],
    images: Images,
    labels: NDArray[np.int64] | None = None,
) -> Quality:
    """Reconstructs images as a server does, and compares.

    Args:
        model: The model, whose posterior means are decoded.
        decode: Maps latents float32 [N, D], and of a conditional model classes int64 [N], to
            images float32 [N, C, H, W] in [0, 1].
        images: uint8 [N, C, H, W], as they are: never binarized. Of more than 1,000, so many
            are taken, evenly spread.
        labels: Their classes, int64 [N]; only a conditional model needs them.
    """
    count = min(_MOST_IMAGES, len(images))
    rows = np.arange(count) * len(images) // count
    ratios, likenesses = [], []
    for start in range(0, count, _CHUNK):
        chosen = rows[start : start + _CHUNK]
        originals, given = np.asarray(images[chosen]), model.given(labels, chosen)
        mean, _ = model.encode(to_unit(originals), *given)
        decoded = to_bytes(np.nan_to_num(decode(mean, *given)))
        ratios.append(psnr(decoded, originals))
        likenesses.append(ssim(decoded, originals))
    return Quality(
        psnr=float(np.concatenate(ratios).mean()),
        ssim=float(np.concatenate(likenesses).mean()),
        reconstructed_images=count,
    )
