"""Size of a row in bytes, and the maximum number of rows in a request."""

import math

from bundle import Manifest
from service.models.model import ModelRefused

# Bytes reserved in a message for everything but the rows.
_OVERHEAD_BYTES = 1024


def row_bytes(manifest: Manifest) -> int:
    """Upper bound on the bytes of a row: a float32 image and three latent vectors."""
    return 4 * (math.prod(manifest.image_shape) + 3 * manifest.latent_dim)


def max_rows(manifest: Manifest, rows: int, message_bytes: int) -> int:
    """Returns the maximum number of rows in one request to a model.

    Args:
        manifest: The model's manifest.
        rows: The setting `max_rows`.
        message_bytes: The setting `max_message_bytes`.

    Raises:
        ModelRefused: Not even one row fits into a message.
    """
    row = row_bytes(manifest)
    fitting = (message_bytes - _OVERHEAD_BYTES) // row
    if fitting < 1:
        raise ModelRefused(
            f"max-message-bytes: got {message_bytes}, but one row of {manifest.name} takes {row}"
        )
    return min(rows, fitting)
