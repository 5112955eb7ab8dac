"""The pictures of a model card, computed by the graphs of the bundle."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from common.pixels import to_bytes
from export.subject import Subject
from latentserve._cli.png import GAP, background_of, encode_png, grid

#: Maximum number of classes in the picture of samples by class.
MAX_CLASSES = 20

# Approximate width of one image in a picture, in pixels.
_SHOWN = 56
# Approximate largest width of the picture of reconstructions, in pixels.
_WIDEST = 1080
# Samples in a row of the grid; half as many if an image is wider or higher than `_LARGE` pixels.
_COLUMNS = 10
_LARGE = 64
# Most values of all samples in a picture: 48 images of 64 x 64 in colour, which take 360 kB.
_MOST_VALUES = 600_000
#: Seed of the samples.
SEED = 7


def card_pictures(
    subject: Subject,
    originals: NDArray[np.uint8],
    means: NDArray[np.float32],
    labels: Sequence[str],
) -> dict[str, bytes]:
    """Draws reconstructions, and samples if the model has a prior.

    Args:
        subject: The model.
        originals: uint8 [N, C, H, W].
        means: float32 [N, D], posterior means of the originals.
        labels: Names of the classes that can be sampled by label.

    Returns:
        PNG files by file name.
    """
    shown = max(1, _WIDEST // (_zoom(originals) * (originals.shape[3] + GAP)))
    files = reconstructions_picture(originals[:shown], to_bytes(subject.decode(means[:shown])))
    columns, rows = sample_grid(originals.shape[1:])
    if subject.draw is not None:
        files |= samples_picture(to_bytes(subject.sample(columns * rows, SEED, None)), columns)
    if labels:
        classes = min(len(labels), MAX_CLASSES)
        columns = max(1, min(columns, _MOST_VALUES // (classes * originals[0].size)))
        samples = np.concatenate([subject.sample(columns, SEED, label) for label in range(classes)])
        files["samples_by_class.png"] = _picture(to_bytes(samples), columns=columns)
    return files


def reconstructions_picture(
    originals: NDArray[np.uint8], reconstructions: NDArray[np.uint8]
) -> dict[str, bytes]:
    """Draws images above their reconstructions, both uint8 [N, C, H, W]; a PNG file by name."""
    pairs = np.concatenate([originals, reconstructions])
    return {"reconstructions.png": _picture(pairs, columns=len(originals))}


def sample_grid(shape: Sequence[int]) -> tuple[int, int]:
    """Number of samples of a shape, C, H and W, in a row of their picture, and number of rows."""
    columns = _COLUMNS if max(shape[1:]) <= _LARGE else _COLUMNS // 2
    return columns, max(1, min(columns, _MOST_VALUES // (columns * math.prod(shape))))


def samples_picture(samples: NDArray[np.uint8], columns: int) -> dict[str, bytes]:
    """Draws samples from the prior, uint8 [N, C, H, W], in a grid; a PNG file by name."""
    return {"samples.png": _picture(samples, columns)}


def _picture(images: NDArray[np.uint8], columns: int | None = None) -> bytes:
    background = background_of(images)
    return encode_png(grid(images, columns, zoom=_zoom(images), background=background))


def _zoom(images: NDArray[np.uint8]) -> int:
    return max(1, round(_SHOWN / int(max(images.shape[2:]))))
