"""Plans of the unary RPCs on rows of images and latents."""

from typing import Any, Unpack

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec, formats, requests, scalars
from latentserve._client.chunks import in_chunks
from latentserve._client.describe import Limits, check_supported
from latentserve._client.labels import Labels, labels_of, part
from latentserve._client.parameters import (
    ArrayFormat,
    Encoding,
    Format,
    Images,
    LatentFormat,
    Resize,
    Sampling,
)
from latentserve._client.plans import Plan, UnaryCall
from latentserve._client.values import Posterior, Samples, Scores
from latentserve.v1 import latent_service_pb2 as pb


def encode(limits: Limits, images: Images, **options: Unpack[Encoding]) -> Plan[Posterior]:
    """Encodes images."""
    posterior, _ = yield from encode_by_version(limits, images, **options)
    return posterior


def encode_by_version(
    limits: Limits,
    images: Images,
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: Resize = False,
    scaled: bool = False,
    latent_dtype: LatentFormat = "float32",
    labels: ArrayLike | None = None,
    model: str = "",
    version: int = 0,
) -> Plan[tuple[Posterior, int]]:
    """Encodes images; returns the posteriors, and the version of the model that answered."""
    source = codec.image_source(images, resize=resize)
    classes = labels_of(labels, len(source))
    seed, offset = requests.draw_of(draw, seed, offset, len(source))
    selector = requests.selector(model, version)
    latent_format = formats.latent_format_message(latent_dtype)
    yield from check_supported(
        limits,
        model,
        version,
        scaled=scaled,
        resize=source.size,
        latent_dtype=latent_format,
        labels=classes is not None,
    )

    def call(rows: slice) -> UnaryCall:
        request = requests.encode_request(
            source,
            rows,
            selector,
            seed,
            offset,
            scaled=scaled,
            latent_dtype=latent_format,
            labels=classes,
        )
        return UnaryCall("Encode", request)

    replies = yield from in_chunks(limits, source.content, call, model, version, source.size)
    return requests.posterior_of(replies, seed), replies[-1].model.version


def decode(
    limits: Limits,
    z: ArrayLike,
    *,
    dtype: Format = "float32",
    scaled: bool = False,
    unclipped: bool = False,
    quality: int | None = None,
    labels: ArrayLike | None = None,
    model: str = "",
    version: int = 0,
) -> Plan[NDArray[Any] | list[bytes]]:
    """Decodes latents."""
    array = codec.latent_array(z)
    classes = labels_of(labels, len(array))
    image_format = formats.format_message(dtype)
    quality = requests.quality_of(quality)
    selector = requests.selector(model, version)
    yield from check_supported(
        limits, model, version, scaled=scaled, unclipped=unclipped, labels=classes is not None
    )

    def call(rows: slice) -> UnaryCall:
        request = requests.decode_request(
            array[rows],
            selector,
            image_format,
            scaled=scaled,
            unclipped=unclipped,
            quality=quality,
            labels=part(classes, rows),
        )
        return UnaryCall("Decode", request)

    replies = yield from in_chunks(limits, array, call, model, version, latents=True)
    return codec.joined_images([reply.images for reply in replies], dtype)


def sample(
    limits: Limits,
    n: int,
    *,
    dtype: Format = "float32",
    quality: int | None = None,
    **options: Unpack[Sampling],
) -> Plan[NDArray[Any] | list[bytes]]:
    """Draws images from the prior."""
    image_format = formats.format_message(dtype)
    request = requests.sample_request(n, image_format, latents=False, quality=quality, **options)
    replies = yield from _sample(limits, request)
    return codec.joined_images([reply.images for reply in replies], dtype)


def sample_with_latents(
    limits: Limits,
    n: int,
    *,
    dtype: ArrayFormat = "float32",
    latent_dtype: LatentFormat = "float32",
    **options: Unpack[Sampling],
) -> Plan[Samples]:
    """Draws images from the prior, and returns them with their latents."""
    image_format = formats.array_format_message(dtype)
    request = requests.sample_request(
        n, image_format, latents=True, latent_dtype=latent_dtype, **options
    )
    replies = yield from _sample(limits, request)
    return requests.samples_of(replies)


def _sample(limits: Limits, request: pb.SampleRequest) -> Plan[list[pb.SampleResponse]]:
    model = request.model
    size = (request.height, request.width) if request.HasField("height") else None
    yield from check_supported(
        limits, model.name, model.version, size=size, latent_dtype=request.latent_dtype
    )

    def call(rows: slice) -> UnaryCall:
        part = pb.SampleRequest()
        part.CopyFrom(request)
        part.count, part.offset = rows.stop - rows.start, request.offset + rows.start
        return UnaryCall("Sample", part)

    rows = range(request.count)
    return (yield from in_chunks(limits, rows, call, model.name, model.version, size))


def reconstruct(
    limits: Limits,
    images: Images,
    *,
    draw: bool = False,
    seed: int | None = None,
    offset: int = 0,
    resize: Resize = False,
    scaled: bool = False,
    dtype: Format = "float32",
    unclipped: bool = False,
    quality: int | None = None,
    labels: ArrayLike | None = None,
    target_labels: ArrayLike | None = None,
    to: Labels = None,
    model: str = "",
    version: int = 0,
) -> Plan[NDArray[Any] | list[bytes]]:
    """Encodes images, and decodes the means of their posteriors or draws from them.

    With `to`, each image is decoded in all of these classes.
    """
    source = codec.image_source(images, resize=resize)
    classes = labels_of(labels, len(source))
    targets, each = labels_of(target_labels, len(source), "target_labels"), 1
    if to is not None:
        targets, each = np.tile(to, len(source)), len(to)
    seed, offset = requests.draw_of(draw, seed, offset, len(source))
    image_format = formats.format_message(dtype)
    quality = requests.quality_of(quality)
    selector = requests.selector(model, version)
    yield from check_supported(
        limits,
        model,
        version,
        scaled=scaled,
        resize=source.size,
        unclipped=unclipped,
        labels=classes is not None,
        target_labels=targets is not None,
    )

    def call(rows: slice) -> UnaryCall:
        request = pb.ReconstructRequest(
            model=selector,
            draw=seed is not None,
            seed=seed,
            offset=offset + rows.start,
            format=image_format,
            scaled=scaled,
            unclipped=unclipped,
            quality=quality,
            labels=part(classes, rows),
            target_labels=part(targets, rows, each),
        )
        source.fill(request.images, rows)
        return UnaryCall("Reconstruct", request)

    replies = yield from in_chunks(
        limits, source.content, call, model, version, source.size, each=each
    )
    return codec.joined_images([reply.images for reply in replies], dtype)


def score(
    limits: Limits,
    images: Images,
    *,
    draws: int = 0,
    seed: int | None = None,
    offset: int = 0,
    resize: Resize = False,
    labels: ArrayLike | None = None,
    model: str = "",
    version: int = 0,
) -> Plan[Scores]:
    """Measures how likely images are under the model."""
    source = codec.image_source(images, resize=resize)
    classes = labels_of(labels, len(source))
    draws = scalars.int64(draws, "draws")
    seed, offset = requests.draw_of(bool(draws), seed if draws else None, offset, len(source))
    selector = requests.selector(model, version)
    yield from check_supported(
        limits, model, version, resize=source.size, labels=classes is not None
    )

    def call(rows: slice) -> UnaryCall:
        request = pb.ScoreRequest(
            model=selector,
            draws=draws,
            seed=seed,
            offset=offset + rows.start,
            labels=part(classes, rows),
        )
        source.fill(request.images, rows)
        return UnaryCall("Score", request)

    replies = yield from in_chunks(limits, source.content, call, model, version, source.size)
    return Scores(
        reconstruction=codec.joined([reply.reconstruction for reply in replies]),
        kl=codec.joined([reply.kl for reply in replies]),
        elbo=codec.joined([reply.elbo for reply in replies]),
        nll=codec.joined_where_sent(replies, "nll"),
        percentile=codec.joined_where_sent(replies, "percentile"),
        seed=seed,
    )
