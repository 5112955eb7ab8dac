"""Plans of Interpolate and Traverse, which decode ways through the latent space."""

import operator
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec, formats, requests, scalars
from latentserve._client.describe import Limits, check_supported, described
from latentserve._client.labels import label_array, labels_of, part
from latentserve._client.parameters import ArrayFormat, LatentFormat, Method, Point, Resize
from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.values import Interpolation, Traversal
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2


def interpolate(
    limits: Limits,
    start: Point,
    stop: Point,
    steps: int = 10,
    *,
    method: Method = "linear",
    dtype: ArrayFormat = "float32",
    latents: bool | None = None,
    latent_dtype: LatentFormat = "float32",
    scaled: bool = False,
    resize: Resize = False,
    labels: ArrayLike | None = None,
    target_labels: ArrayLike | None = None,
    model: str = "",
    version: int = 0,
) -> Plan[Interpolation]:
    """Decodes a path from one image or latent to another."""
    steps = scalars.int64(steps, "steps")
    request = pb.InterpolateRequest(
        model=requests.selector(model, version),
        steps=steps,
        labels=part(labels_of(labels, 2, each="ends"), slice(0, 2)),
        target_labels=part(
            labels_of(target_labels, steps, "target_labels", "images"), slice(0, steps)
        ),
        method=formats.method_message(method),
        format=formats.array_format_message(dtype),
        return_latents=True,
        scaled=scaled,
        latent_dtype=formats.latent_format_message(latent_dtype),
    )
    first, second = (
        codec.point_array(point, what, resize) for point, what in ((start, "start"), (stop, "stop"))
    )
    yield from check_supported(
        limits,
        model,
        version,
        scaled=scaled,
        resize=codec.given_size(resize),
        latent_dtype=request.latent_dtype,
        labels=request.labels,
        target_labels=request.target_labels,
    )
    from_z = yield from _latent_of(limits, first, "start", latents, model, version)
    to_z = yield from _latent_of(limits, second, "stop", latents, model, version)
    if from_z is not None and to_z is not None:
        if from_z.shape != to_z.shape:
            raise ValueError(f"stop: got shape {list(to_z.shape)}, wanted {list(from_z.shape)}")
        request.latents.CopyFrom(codec.to_tensor(codec.latent_array(np.stack([from_z, to_z]))))
    elif from_z is not None or to_z is not None:
        raise ValueError("stop: got a latent and an image, wanted two latents or two images")
    else:
        ends = (codec.image_message(end, resize=resize) for end in (first, second))
        request.images.CopyFrom(_joined_pair(*ends))
    reply = yield UnaryCall("Interpolate", request)
    return Interpolation(
        images=codec.joined([reply.images.tensor]), latents=codec.joined([reply.latents])
    )


def traverse(
    limits: Limits,
    axes: int | Iterable[int] | None = None,
    *,
    steps: int = 11,
    range: float = 3.0,  # noqa: A002 - the name of the proto's field
    middle: Point | None = None,
    dtype: ArrayFormat = "float32",
    latents: bool | None = None,
    latent_dtype: LatentFormat = "float32",
    resize: Resize = False,
    labels: ArrayLike | None = None,
    target_labels: ArrayLike | None = None,
    model: str = "",
    version: int = 0,
) -> Plan[Traversal]:
    """Decodes a line or a grid of points along latent axes."""
    request = pb.TraverseRequest(
        labels=part(labels_of(labels, 1, each="middle"), slice(0, 1)),
        target_labels=_of_points(target_labels),
        model=requests.selector(model, version),
        axes=_axes(axes),
        steps=scalars.int64(steps, "steps"),
        range=scalars.real(range, "range"),
        format=formats.array_format_message(dtype),
        return_latents=True,
        latent_dtype=formats.latent_format_message(latent_dtype),
    )
    yield from check_supported(
        limits,
        model,
        version,
        resize=codec.given_size(resize),
        latent_dtype=request.latent_dtype,
        labels=request.labels,
        target_labels=request.target_labels,
    )
    if middle is not None:
        point = codec.point_array(middle, "middle", resize)
        z = yield from _latent_of(limits, point, "middle", latents, model, version)
        if z is not None:
            request.latent.CopyFrom(codec.to_tensor(codec.latent_array(z[None])))
        else:
            request.image.CopyFrom(codec.image_message(point, resize=resize))
    reply = yield UnaryCall("Traverse", request)
    grid = reply.rows, reply.columns
    images = codec.joined([reply.images.tensor])
    points = codec.joined([reply.latents])
    return Traversal(
        images=images.reshape(*grid, *images.shape[1:]),
        latents=points.reshape(*grid, *points.shape[1:]),
    )


def _latent_of(
    limits: Limits,
    point: bytes | NDArray[Any],
    what: str,
    latents: bool | None,
    model: str,
    version: int,
) -> Plan[NDArray[Any] | None]:
    """Returns a point if it is a latent, None if it is an image.

    The server is queried if only the model's shapes tell.

    Args:
        limits: The client's cache of limits; updated.
        point: Content of a file, or an array of 1 to 3 axes.
        what: Name of the parameter, for errors.
        latents: Whether arrays of three axes are latents; None if the caller does not say.
        model: Requested name of the model.
        version: Requested version of the model.

    Raises:
        ValueError: The array may be either.
    """
    if isinstance(point, bytes):
        return None
    if point.ndim != 3:
        return point if point.ndim == 1 else None
    if latents is not None or point.dtype == np.uint8:
        return point if latents else None
    info = yield from described(limits, model, version)
    if len(info.latent_shape) != 3:
        return None
    channels, latent_channels = info.image_shape[0], info.latent_shape[0]
    if channels != latent_channels:
        return point if len(point) == latent_channels else None
    if info.sizes is None:
        return point if point.shape == info.latent_shape else None
    raise ValueError(
        f"{what}: got shape {list(point.shape)}, which images and latents of {info.name} can both "
        "have; wanted latents=True or latents=False as well"
    )


def _of_points(labels: Any) -> list[int]:
    """Returns the labels of the points of a grid, which may be laid out as one; or one for all.

    Their number is left to the server: that of the axes follows from the model by default.
    """
    if labels is None:
        return []
    numbers: list[int] = label_array(np.ravel(labels), "target_labels").tolist()
    return numbers


def _axes(axes: Any) -> list[int]:
    """Returns one axis or several as a list; empty for None.

    Raises:
        TypeError: An axis is not a whole number.
        ValueError: An axis does not fit into 32 bits.
    """
    if axes is None:
        return []
    try:
        return [scalars.int32(operator.index(axes), "axes")]
    except TypeError:
        pass
    if not isinstance(axes, Iterable):
        raise TypeError(f"axes: got {scalars.shown(axes)}, wanted whole numbers")
    return [scalars.int32(axis, f"axes[{index}]") for index, axis in enumerate(axes)]


def _joined_pair(first: tensor_pb2.Images, second: tensor_pb2.Images) -> tensor_pb2.Images:
    """Joins two messages of one image each.

    Raises:
        ValueError: One image is a file and the other an array, or the arrays differ in shape or
            dtype.
    """
    sources = {images.WhichOneof("source") for images in (first, second)}
    if sources == {"encoded"}:
        first.encoded.files.extend(second.encoded.files)
        return first
    if sources == {"tensor"}:
        arrays = [codec.to_array(images.tensor) for images in (first, second)]
        if arrays[0].shape == arrays[1].shape and arrays[0].dtype == arrays[1].dtype:
            return tensor_pb2.Images(tensor=codec.to_tensor(np.concatenate(arrays)))
    raise ValueError("stop: wanted an image of the same kind, shape and dtype as start")
