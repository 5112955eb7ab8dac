"""Size of a row in bytes, and the limits on the rows and pixels of a message."""

import math

from bundle import Manifest
from service.models.model import ModelRefused
from service.models.speed import ImageSize

# Bytes reserved in a message for everything but the rows.
_OVERHEAD_BYTES = 1024


def row_bytes(manifest: Manifest, size: ImageSize = ()) -> int:
    """Upper bound on the bytes of a row: a float32 image and three latents.

    Args:
        manifest: The model's manifest.
        size: Size of the image; by default that of the golden rows.
    """
    if not size:
        return 4 * (math.prod(manifest.image_shape) + 3 * manifest.latent_dim)
    latent = manifest.latent_shape_of(*size)
    return 4 * (manifest.image_shape[0] * math.prod(size) + 3 * math.prod(latent))


def max_rows(manifest: Manifest, rows: int, message_bytes: int, size: ImageSize = ()) -> int:
    """Returns the maximum number of rows in one request to a model.

    Args:
        manifest: The model's manifest.
        rows: The setting `max_rows`.
        message_bytes: The setting `max_message_bytes`.
        size: Size of the images; by default that of the golden rows.

    Raises:
        ModelRefused: Not even one row fits into a message.
    """
    row = row_bytes(manifest, size)
    fitting = (message_bytes - _OVERHEAD_BYTES) // row
    if fitting < 1:
        raise ModelRefused(
            f"max-message-bytes: got {message_bytes}, but one row of {manifest.name} takes {row}"
        )
    return min(rows, fitting)


def fitting_pixels(manifest: Manifest, message_bytes: int) -> int:
    """Returns the pixels of the largest image of which a row fits into a message.

    Args:
        manifest: The manifest of a model whose height and width are free.
        message_bytes: The setting `max_message_bytes`.
    """
    assert manifest.sizes is not None
    unit = manifest.sizes.multiple
    return (message_bytes - _OVERHEAD_BYTES) // row_bytes(manifest, (unit, unit)) * unit**2
