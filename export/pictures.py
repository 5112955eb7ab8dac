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

#: Maximum number of classes in the picture of analogies.
MAX_ANALOGIES = 64
# Rows of the picture of analogies.
_STYLES = 10

# Approximate width of one image in a picture, in pixels.
_SHOWN = 56
# Approximate largest width of the pictures of reconstructions and of analogies, in pixels.
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
    original_labels: NDArray[np.int64],
    means: NDArray[np.float32],
    labels: Sequence[str],
) -> dict[str, bytes]:
    """Draws reconstructions, samples if the model has a prior, and analogies if it is conditional.

    Args:
        subject: The model.
        originals: uint8 [N, C, H, W].
        original_labels: Classes of the originals, int64 [N].
        means: float32 [N or more, D], posterior means of the originals first.
        labels: Names of the classes that can be sampled by label.

    Returns:
        PNG files by file name.
    """
    shown = max(1, _WIDEST // (_zoom(originals) * (originals.shape[3] + GAP)))
    originals, means = originals[:shown], means[: len(originals[:shown])]
    given = subject.autoencoder.given(original_labels, slice(len(originals)))
    files = reconstructions_picture(originals, to_bytes(subject.decode(means, *given)))
    columns, rows = sample_grid(originals.shape[1:])
    if subject.draw is not None:
        files |= samples_picture(to_bytes(subject.sample(columns * rows, SEED, None)), columns)
    if labels:
        classes = min(len(labels), MAX_CLASSES)
        columns = max(1, min(columns, _MOST_VALUES // (classes * originals[0].size)))
        samples = np.concatenate([subject.sample(columns, SEED, label) for label in range(classes)])
        files["samples_by_class.png"] = _picture(to_bytes(samples), columns=columns)
    if subject.autoencoder.conditional:
        files |= analogies_picture(subject, originals[:_STYLES], means[:_STYLES])
    return files


def analogies_picture(
    subject: Subject, originals: NDArray[np.uint8], means: NDArray[np.float32]
) -> dict[str, bytes]:
    """Draws each image in its first column, and the same latent as every class beside it.

    Args:
        subject: A conditional model.
        originals: uint8 [N, C, H, W].
        means: Their posterior means, float32 [N, D].

    Returns:
        A PNG file by name; of many classes, the first `MAX_ANALOGIES` are drawn.
    """
    classes = np.arange(min(subject.labels, MAX_ANALOGIES))
    rows = []
    for original, mean in zip(originals, means, strict=True):
        decoded = subject.decode(np.tile(mean, (len(classes), 1)), classes)
        rows.append(np.concatenate([original[None], to_bytes(decoded)]))
    columns = 1 + len(classes)
    zoom = max(1, min(_zoom(originals), _WIDEST // (columns * originals.shape[3])))
    images = np.concatenate(rows)
    picture = grid(images, columns, zoom=zoom, background=background_of(images))
    return {"analogies.png": encode_png(picture)}


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
