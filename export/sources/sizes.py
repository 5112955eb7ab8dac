"""The sizes of images that a convolutional autoencoder takes."""

from bundle import Sizes
from export.sources.imported import MOST_PIXELS

# Attention takes memory by the square of the number of latents: 4 GiB a row with so many. Fewer,
# by the square of the factor, where latents are hardly smaller than images.
_MOST_TOKENS, _TOKENS_OF_FACTOR = 1 << 15, 1 << 10


def free_sizes(factor: int, *, attends: bool) -> Sizes:
    """Any size in multiples of a factor.

    Args:
        factor: Height of an image divided by that of its latent.
        attends: Whether there is attention between all latents of an image.
    """
    tokens = min(_MOST_TOKENS, _TOKENS_OF_FACTOR * factor**2)
    most = min(MOST_PIXELS, tokens * factor**2) if attends else MOST_PIXELS
    return Sizes(factor=factor, multiple=factor, least=factor, most_pixels=most)
