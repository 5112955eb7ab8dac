"""How many rows fit into a message, and how many bytes a row is."""

import math

from bundle import Manifest
from service.models.model import ModelRefused

# Room in a message for everything that is not rows.
_OVERHEAD_BYTES = 1024


def row_bytes(manifest: Manifest) -> int:
    """Bytes of a row at most: an image as float32 and three vectors of latents."""
    return 4 * (math.prod(manifest.image_shape) + 3 * manifest.latent_dim)


def max_rows(manifest: Manifest, rows: int, message_bytes: int) -> int:
    """Returns the most rows in one request to a model.

    Args:
        manifest: The model.
        rows: The operator's limit.
        message_bytes: Most bytes in one message.

    Raises:
        ModelRefused: Not even one row fits.
    """
    row = row_bytes(manifest)
    fitting = (message_bytes - _OVERHEAD_BYTES) // row
    if fitting < 1:
        raise ModelRefused(
            f"max-message-bytes: got {message_bytes}, but one row of {manifest.name} takes {row}"
        )
    return min(rows, fitting)
