"""Plans of the unary RPCs on images and latents."""

import operator
from collections.abc import Iterable
from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec, requests, scalars
from latentserve._client.chunks import in_chunks
from latentserve._client.describe import Limits
from latentserve._client.parameters import ArrayFormat, Format, Images, Method, Point, Sampling
from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.values import Interpolation, Posterior, Samples, Scores, Traversal
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2


def encode(
    limits: Limits,
    images: Images,
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Posterior]:
    """Encodes images."""
    source = codec.image_source(images, resize=resize)
    seed, offset = requests.draw_of(draw, seed, offset, len(source))
    selector = requests.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        return UnaryCall("Encode", requests.encode_request(source, rows, selector, seed, offset))

    replies = yield from in_chunks(limits, source.content, call, model, version)
    return requests.posterior_of(replies, seed)


def decode(
    limits: Limits, z: ArrayLike, *, dtype: Format = "float32", model: str = "", version: int = 0
) -> Plan[NDArray[Any] | list[bytes]]:
    """Decodes latents."""
    array = codec.latent_array(z)
    image_format = codec.format_message(dtype)
    selector = requests.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        return UnaryCall("Decode", requests.decode_request(array[rows], selector, image_format))

    replies = yield from in_chunks(limits, array, call, model, version)
    return codec.joined_images([reply.images for reply in replies], dtype)


def sample(
    limits: Limits, n: int, *, dtype: Format = "float32", **options: Unpack[Sampling]
) -> Plan[NDArray[Any] | list[bytes]]:
    """Draws images from the prior."""
    image_format = codec.format_message(dtype)
    replies = yield from _sample(
        limits, requests.sample_request(n, image_format, latents=False, **options)
    )
    return codec.joined_images([reply.images for reply in replies], dtype)


def sample_with_latents(
    limits: Limits, n: int, *, dtype: ArrayFormat = "float32", **options: Unpack[Sampling]
) -> Plan[Samples]:
    """Draws images from the prior, and returns them with their latents."""
    image_format = requests.array_format(dtype)
    replies = yield from _sample(
        limits, requests.sample_request(n, image_format, latents=True, **options)
    )
    return requests.samples_of(replies)


def _sample(limits: Limits, request: pb.SampleRequest) -> Plan[list[pb.SampleResponse]]:
    def call(rows: slice) -> UnaryCall:
        part = pb.SampleRequest()
        part.CopyFrom(request)
        part.count, part.offset = rows.stop - rows.start, request.offset + rows.start
        return UnaryCall("Sample", part)

    model = request.model
    return (yield from in_chunks(limits, range(request.count), call, model.name, model.version))


def reconstruct(
    limits: Limits,
    images: Images,
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: bool = False,
    dtype: Format = "float32",
    model: str = "",
    version: int = 0,
) -> Plan[NDArray[Any] | list[bytes]]:
    """Encodes images, and decodes the means of their posteriors or draws from them."""
    source = codec.image_source(images, resize=resize)
    seed, offset = requests.draw_of(draw, seed, offset, len(source))
    image_format = codec.format_message(dtype)
    selector = requests.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        request = pb.ReconstructRequest(
            model=selector,
            draw=seed is not None,
            seed=seed,
            offset=offset + rows.start,
            format=image_format,
        )
        source.fill(request.images, rows)
        return UnaryCall("Reconstruct", request)

    replies = yield from in_chunks(limits, source.content, call, model, version)
    return codec.joined_images([reply.images for reply in replies], dtype)


def interpolate(
    start: Point,
    stop: Point,
    steps: int = 10,
    *,
    method: Method = "linear",
    dtype: ArrayFormat = "float32",
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Interpolation]:
    """Decodes a path from one image or latent to another."""
    request = pb.InterpolateRequest(
        model=requests.selector(model, version),
        steps=scalars.int64(steps, "steps"),
        method=codec.method_message(method),
        format=requests.array_format(dtype),
        return_latents=True,
    )
    first = codec.point_message(start, "start", resize=resize)
    second = codec.point_message(stop, "stop", resize=resize)
    if isinstance(first, np.ndarray) and isinstance(second, np.ndarray):
        if first.shape != second.shape:
            raise ValueError(f"stop: got shape {list(second.shape)}, wanted {list(first.shape)}")
        request.latents.CopyFrom(codec.to_tensor(codec.latent_array(np.stack([first, second]))))
    elif isinstance(first, tensor_pb2.Images) and isinstance(second, tensor_pb2.Images):
        request.images.CopyFrom(_joined_pair(first, second))
    else:
        raise ValueError("stop: got a latent and an image, wanted two latents or two images")
    reply = yield UnaryCall("Interpolate", request)
    return Interpolation(
        images=codec.joined([reply.images.tensor]), latents=codec.joined([reply.latents])
    )


def traverse(
    axes: int | Iterable[int] | None = None,
    *,
    steps: int = 11,
    range: float = 3.0,  # noqa: A002 - the name of the proto's field
    middle: Point | None = None,
    dtype: ArrayFormat = "float32",
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Traversal]:
    """Decodes a line or a grid of points along latent axes."""
    request = pb.TraverseRequest(
        model=requests.selector(model, version),
        axes=_axes(axes),
        steps=scalars.int64(steps, "steps"),
        range=scalars.real(range, "range"),
        format=requests.array_format(dtype),
        return_latents=True,
    )
    if middle is not None:
        point = codec.point_message(middle, "middle", resize=resize)
        if isinstance(point, np.ndarray):
            request.latent.CopyFrom(codec.to_tensor(codec.latent_array(point[None])))
        else:
            request.image.CopyFrom(point)
    reply = yield UnaryCall("Traverse", request)
    grid = reply.rows, reply.columns
    images = codec.joined([reply.images.tensor])
    latents = codec.joined([reply.latents])
    return Traversal(
        images=images.reshape(*grid, *images.shape[1:]),
        latents=latents.reshape(*grid, *latents.shape[1:]),
    )


def score(
    limits: Limits,
    images: Images,
    *,
    draws: int = 0,
    seed: int | None = None,
    offset: int = 0,
    resize: bool = False,
    model: str = "",
    version: int = 0,
) -> Plan[Scores]:
    """Measures how likely images are under the model."""
    source = codec.image_source(images, resize=resize)
    draws = scalars.int64(draws, "draws")
    seed, offset = requests.draw_of(bool(draws), seed if draws else None, offset, len(source))
    selector = requests.selector(model, version)

    def call(rows: slice) -> UnaryCall:
        request = pb.ScoreRequest(
            model=selector, draws=draws, seed=seed, offset=offset + rows.start
        )
        source.fill(request.images, rows)
        return UnaryCall("Score", request)

    replies = yield from in_chunks(limits, source.content, call, model, version)
    return Scores(
        reconstruction=codec.joined([reply.reconstruction for reply in replies]),
        kl=codec.joined([reply.kl for reply in replies]),
        elbo=codec.joined([reply.elbo for reply in replies]),
        nll=codec.joined_where_sent(replies, "nll"),
        percentile=codec.joined_where_sent(replies, "percentile"),
        seed=seed,
    )


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
        encoded = tensor_pb2.EncodedImages(
            files=[*first.encoded.files, *second.encoded.files], resize=first.encoded.resize
        )
        return tensor_pb2.Images(encoded=encoded)
    if sources == {"tensor"}:
        arrays = [codec.to_array(images.tensor) for images in (first, second)]
        if arrays[0].shape == arrays[1].shape and arrays[0].dtype == arrays[1].dtype:
            return tensor_pb2.Images(tensor=codec.to_tensor(np.concatenate(arrays)))
    raise ValueError("stop: wanted an image of the same kind, shape and dtype as start")
