"""The sizes that a model of free size takes: which ones are allowed, nearest, or in a bucket."""

import math
from collections.abc import Sequence
from typing import Protocol

#: Height and width of images, in pixels.
Size = tuple[int, int]

# The sides of buckets are multiples of an eighth of the requested side, as is usual (64 for 512).
_STEPS = 8
_MOST_ASPECT = 4


class Sizes(Protocol):
    """The sizes that a model takes, as in `latentserve.client.Sizes`."""

    @property
    def multiple(self) -> int:
        """Height and width are multiples of this."""

    @property
    def least(self) -> int:
        """Minimum of height and width."""

    @property
    def most_pixels(self) -> int:
        """Maximum of height times width."""


def label(size: Size) -> str:
    """Returns a size for file names, height first as in `--size` and in the shapes of arrays."""
    return f"{size[0]}x{size[1]}"


def described(size: Size) -> str:
    """Returns a size for messages."""
    return f"height {size[0]} and width {size[1]}"


def is_allowed(size: Size, sizes: Sizes) -> bool:
    """Whether a model takes images of a size."""
    return (
        all(side % sizes.multiple == 0 and side >= sizes.least for side in size)
        and math.prod(size) <= sizes.most_pixels
    )


def wanted(sizes: Sizes) -> str:
    """Describes the sizes that a model takes, for messages."""
    return (
        f"multiples of {sizes.multiple} from {sizes.least} up, "
        f"at most {sizes.most_pixels} pixels in all"
    )


def nearest(size: Size, sizes: Sizes) -> Size:
    """Returns the allowed size that is nearest to that of a picture, as a server chooses it.

    A picture of more than `most_pixels` is made smaller in its aspect ratio first.
    """
    unit, least, most = sizes.multiple, sizes.least, sizes.most_pixels
    scale = min(1.0, math.sqrt(most / math.prod(size)))
    for rounded in (round, math.floor):
        height, width = (max(least, unit * rounded(side * scale / unit)) for side in size)
        if height * width <= most:
            return height, width
    # One side has the minimum.
    longest = most // min(height, width) // unit * unit
    return (longest, width) if height >= width else (height, longest)


def buckets(side: int, sizes: Sizes) -> list[Size]:
    """Returns the sizes of buckets: of about side x side pixels, in aspect ratios up to 4.

    Args:
        side: Side of the square bucket, the one of the most pixels.
        sizes: The sizes that the model takes.

    Raises:
        ValueError: A bucket would have a size that the model does not take. The message names the
            smallest and the largest side whose buckets it takes.
    """
    found = _buckets(side, sizes.multiple)
    if not _all_allowed(found, sizes):
        raise ValueError(f"bucket: got {side}, but the model takes {wanted(sizes)}{_fits(sizes)}")
    return found


def _buckets(side: int, multiple: int) -> list[Size]:
    step = -(-side // (_STEPS * multiple)) * multiple
    found: set[Size] = set()
    for short in range(step, side + 1, step):
        long = side * side // short // step * step
        if long <= _MOST_ASPECT * short:
            found |= {(short, long), (long, short)}
    return sorted(found)


def _all_allowed(found: Sequence[Size], sizes: Sizes) -> bool:
    return bool(found) and all(is_allowed(size, sizes) for size in found)


def _fits(sizes: Sizes) -> str:
    """Names the smallest and the largest side whose buckets a model takes, for a message."""
    # The bucket of the most pixels has at least 1 - 1 / _STEPS of the side along both axes.
    most = math.isqrt(sizes.most_pixels) * _STEPS // (_STEPS - 1) + sizes.multiple
    fitting = [
        side
        for side in range(sizes.multiple, most + 1, sizes.multiple)
        if _all_allowed(_buckets(side, sizes.multiple), sizes)
    ]
    if not fitting:
        return "; no bucket fits"
    return f"; the smallest bucket that fits is {fitting[0]}, the largest {fitting[-1]}"


def nearest_bucket(size: Size, found: Sequence[Size]) -> Size:
    """Returns the bucket whose aspect ratio is nearest to that of a picture; the larger of two."""
    height, width = size

    def distance(bucket: Size) -> tuple[float, int]:
        return abs(math.log(bucket[0] * width / (bucket[1] * height))), -math.prod(bucket)

    return min(found, key=distance)
