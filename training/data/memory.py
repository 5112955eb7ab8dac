"""Limit on the size of a data set, since all of it is held in memory."""

from training.errors import DataError

MAX_BYTES = 8 * 2**30


def refuse_too_many(origin: str, images: int, bytes_each: int) -> None:
    """Refuses a data set that is too large, before memory is allocated for it.

    Args:
        origin: Name of the data set, for the error message.
        images: Number of images.
        bytes_each: Bytes per image.

    Raises:
        DataError: The images together take more than `MAX_BYTES`.
    """
    if images * bytes_each > MAX_BYTES:
        raise DataError(
            f"{origin}: {images} images of {bytes_each} bytes take "
            f"{images * bytes_each / 2**30:.1f} GiB of memory, wanted at most "
            f"{MAX_BYTES / 2**30:.0f} GiB. Remedy: a smaller --image-size, --channels 1, or "
            "fewer images"
        )
