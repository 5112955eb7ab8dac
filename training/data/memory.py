"""The limit on the size of a data set, which is held in memory as a whole."""

from training.errors import DataError

MOST_BYTES = 8 * 2**30


def refuse_too_many(origin: str, images: int, bytes_each: int) -> None:
    """Refuses a data set that is too large, before memory is allocated for it.

    Args:
        origin: Name of the data set, for the error message.
        images: How many images it has.
        bytes_each: Bytes that each of them takes.

    Raises:
        DataError: They take more than `MOST_BYTES` together.
    """
    if images * bytes_each > MOST_BYTES:
        raise DataError(
            f"{origin}: {images} images of {bytes_each} bytes take "
            f"{images * bytes_each / 2**30:.1f} GiB of memory, wanted at most "
            f"{MOST_BYTES / 2**30:.0f} GiB. Remedy: a smaller --image-size, --channels 1, or "
            "fewer images"
        )
