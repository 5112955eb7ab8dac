"""Whether a data set, which is held in memory whole, would fit there."""

from training.errors import DataError

MOST_BYTES = 8 * 2**30


def refuse_too_many(origin: str, images: int, bytes_each: int) -> None:
    """Finds out before it is taken whether there would be memory for all of a data set.

    Raises:
        DataError: It would take more than `MOST_BYTES`; `origin` is what is too large.
    """
    if images * bytes_each > MOST_BYTES:
        raise DataError(
            f"{origin}: {images} images of {bytes_each} bytes take "
            f"{images * bytes_each / 2**30:.1f} GiB of memory, wanted at most "
            f"{MOST_BYTES / 2**30:.0f} GiB. Remedy: a smaller --image-size, --channels 1, or "
            "fewer images"
        )
