"""How the rows of a source fit a model: the size of each row's image, or why it is refused."""

from collections.abc import Sequence
from typing import NoReturn

import numpy as np

from latentserve._client.headers import PictureSize
from latentserve._client.parameters import Resize
from latentserve._client.values import ModelInfo
from latentserve._jobs import sizes
from latentserve._jobs.arrays import Arrays, Part, unlike
from latentserve._jobs.errors import SourceError
from latentserve._jobs.layout import Numbers
from latentserve._jobs.sizes import Size, Sizes
from latentserve._jobs.sources import Pictures

#: Most sizes of picture files that are encoded as they are.
MOST_SIZES = 64

#: Size of images, numbers of the rows of that size, and index of their part of the source.
Planned = tuple[Size, Numbers, int]


def latent_shape(model: ModelInfo, size: Size) -> tuple[int, ...]:
    """Returns the shape of a latent of an image of a size."""
    shape = model.latent_shape or (model.latent_dim,)
    if model.sizes is None or size == model.image_shape[1:]:
        return shape
    height, width = size
    return (shape[0], height // model.sizes.factor, width // model.sizes.factor)


def planned_images(
    source: Arrays, model: ModelInfo, resize: Resize, bucket: int | None
) -> list[Planned]:
    """Returns the sizes of arrays of images.

    Raises:
        SourceError: The shape of rows is not that of an image of the model, or they are to be
            resized to a size.
    """
    if bucket is not None or isinstance(resize, tuple):
        what = "a size" if bucket is None else "bucket"
        name = source.parts[0].name
        raise SourceError(f"{name}: got an npy file, wanted image files for {what}")
    channels, height, width = model.image_shape
    golden: list[list[int]] = [[channels, height, width], [channels * height * width]]
    golden += [[height, width]] if channels == 1 else []
    leading = [[channels]] + ([[]] if channels == 1 else [])
    planned = []
    for part in source.parts:
        shape = list(part.row_shape)
        size = (height, width)
        if shape not in golden:
            if model.sizes is None:
                _refuse(part, golden)
            if len(shape) < 2 or shape[:-2] not in leading:
                _refuse(part, [[channels, "H", "W"], *golden[1:]])
            size = (shape[-2], shape[-1])
            _check_size(part.name, sizes.described(size), size, model.sizes)
        planned.append(size)
    if len(set(planned)) > MOST_SIZES:
        raise SourceError(_too_many(part.name, len(set(planned))))
    return _distinct(source, planned)


def planned_latents(source: Arrays, model: ModelInfo) -> list[Planned]:
    """Returns the sizes of the images of arrays of latents.

    Raises:
        SourceError: The shape of rows is not that of a latent of the model.
    """
    latent = list(model.latent_shape or (model.latent_dim,))
    golden = [latent] if latent == [model.latent_dim] else [latent, [model.latent_dim]]
    planned = []
    for part in source.parts:
        shape = list(part.row_shape)
        size = model.image_shape[1:]
        if shape not in golden:
            if model.sizes is None:
                _refuse(part, golden)
            if len(shape) != 3 or shape[0] != latent[0]:
                _refuse(part, [[latent[0], "h", "w"], *golden[1:]])
            size = (shape[1] * model.sizes.factor, shape[2] * model.sizes.factor)
            _check_size(
                part.name, f"latents of images of {sizes.described(size)}", size, model.sizes
            )
        planned.append(size)
    return _distinct(source, planned)


def planned_pictures(
    source: Pictures, model: ModelInfo, resize: Resize, bucket: int | None
) -> list[Planned]:
    """Returns the sizes that picture files have, or are resized to.

    Args:
        source: The files.
        model: The model.
        resize: Whether files of other sizes are resized, or the size that all are resized to.
        bucket: Side of the square bucket; None for no buckets.

    Raises:
        SourceError: A file has a size that the model does not take, or there are too many sizes.
        ValueError: The model does not take the requested size, or those of the buckets.
    """
    if model.sizes is None:
        only = model.image_shape[1:]
        for name, got in (("bucket", bucket), ("resize", resize)):
            if got is not None and not isinstance(got, bool) and got != only:
                raise _only(name, got, only)
        return [(only, range(source.rows), 0)]
    targets = _targets(source, model.sizes, resize, bucket)
    distinct = sorted(set(targets.values()))
    if len(distinct) > MOST_SIZES and not resize:
        raise SourceError(_too_many(source.name, len(distinct)) + ", or resize or bucket")
    if len(distinct) == 1:
        return [(distinct[0], range(source.rows), 0)]
    index = {size: number for number, size in enumerate(distinct)}
    of_size = {size: index[target] for size, target in targets.items()}
    which = np.fromiter((of_size[size] for size in source.sizes if size), np.int32, source.rows)
    order = np.argsort(which, kind="stable")
    ends = np.searchsorted(which[order], range(len(distinct)), "right")
    rows = np.split(order, ends[:-1])
    return [(size, numbers, 0) for size, numbers in zip(distinct, rows, strict=True)]


def _targets(
    source: Pictures, allowed: Sizes, resize: Resize, bucket: int | None
) -> dict[PictureSize, Size]:
    """Returns the size that pictures of each size are encoded in; arguments as above."""
    found = None if bucket is None else sizes.buckets(bucket, allowed)
    if isinstance(resize, tuple) and not sizes.is_allowed(resize, allowed):
        raise ValueError(f"resize: got {resize}, but the model takes {sizes.wanted(allowed)}")
    targets: dict[PictureSize, Size] = {}
    for file, size in zip(source.files, source.sizes, strict=True):
        if size in targets:
            continue
        if size is None or not size.height or not size.width:
            raise SourceError(f"{file}: got a damaged header, wanted a PNG, JPEG or WebP file")
        if found is not None:
            targets[size] = sizes.nearest_bucket(size.upright, found)
        elif isinstance(resize, tuple):
            targets[size] = resize
        elif resize:
            targets[size] = sizes.nearest(size.upright, allowed)
        else:
            targets[size] = size.height, size.width
            got = sizes.described(targets[size])
            _check_size(str(file), got, targets[size], allowed, ", or resize")
    return targets


def sampled_size(model: ModelInfo, size: Size | None) -> Size:
    """Returns the size of the images of a sample job.

    Args:
        model: The model.
        size: The requested size; None for that of `ModelInfo.image_shape`.

    Raises:
        ValueError: The model does not take images of that size.
    """
    only = model.image_shape[1:]
    if size is None or size == only:
        return only
    if model.sizes is None:
        raise _only("size", size, only)
    if not sizes.is_allowed(size, model.sizes):
        raise ValueError(f"size: got {size}, but the model takes {sizes.wanted(model.sizes)}")
    return size


def _distinct(source: Arrays, planned: list[Size]) -> list[Planned]:
    """Returns the sizes of the parts of a source.

    Raises:
        SourceError: Two parts have rows of one size, in different shapes.
    """
    first: dict[Size, Part] = {}
    found = []
    for index, (size, part) in enumerate(zip(planned, source.parts, strict=True)):
        if size in first:
            raise unlike(part.files[0], first[size].files[0])
        first[size] = part
        found.append((size, part.rows, index))
    return found


def _only(name: str, got: object, only: Size) -> ValueError:
    return ValueError(f"{name}: got {got}, but the model takes {sizes.described(only)} alone")


def _refuse(part: Part, shapes: Sequence[Sequence[int | str]]) -> NoReturn:
    wanted = " or ".join(f"[{', '.join(map(str, shape))}]" for shape in shapes)
    raise SourceError(f"{part.name}: got rows of shape {list(part.row_shape)}, wanted {wanted}")


def _check_size(name: str, got: str, size: Size, allowed: Sizes, remedy: str = "") -> None:
    """Raises SourceError if a size is not allowed."""
    if not sizes.is_allowed(size, allowed):
        raise SourceError(f"{name}: got {got}, wanted {sizes.wanted(allowed)}{remedy}")


def _too_many(name: str, count: int) -> str:
    return f"{name}: got images of {count} sizes, wanted at most {MOST_SIZES}"
