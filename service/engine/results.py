"""What the engine computes for a call."""

from dataclasses import dataclass
from typing import NamedTuple

from service.engine.operations import Array, Labels, Pixels


class Encoded(NamedTuple):
    """Posteriors of images.

    Attributes:
        mean: Means, float32 [N, D] or [N, c, h, w].
        log_var: Log-variances, of the same shape; None for a plain autoencoder.
        z: Samples, of the same shape; None if none were drawn.
    """

    mean: Array
    log_var: Array | None
    z: Array | None = None


@dataclass(frozen=True)
class Decoded:
    """Images and the latents they were decoded from.

    Attributes:
        images: [N, C, H, W]; uint8, or float32 in [0, 1].
        latents: float32 [N, D] or [N, c, h, w].
        labels: Classes of samples of a conditional model, int64 [N]; else None.
    """

    images: Pixels
    latents: Array
    labels: Labels = None
