"""Builds requests and reads replies, for unary calls and streams."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from latentserve._client import codec, formats, scalars
from latentserve._client.codec import ImageSource
from latentserve._client.labels import Labels, part
from latentserve._client.parameters import LatentFormat
from latentserve._client.values import Posterior, Samples
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2


def selector(model: str, version: int) -> pb.ModelSelector:
    """Returns the selector of a model.

    An empty `model` is the default model, and `version` 0 the highest one.
    """
    try:
        return pb.ModelSelector(name=model, version=version)
    except (TypeError, ValueError):
        # Checked only then: it is part of every call.
        if not isinstance(model, str):
            raise TypeError(f"model: got {scalars.shown(model)}, wanted a name") from None
        scalars.int64(version, "version")
        raise


def encode_request(
    source: ImageSource,
    rows: slice,
    model: pb.ModelSelector,
    seed: int | None,
    offset: int,
    *,
    scaled: bool = False,
    latent_dtype: tensor_pb2.DataType | None = None,
    labels: Labels = None,
) -> pb.EncodeRequest:
    """Builds a request for the posteriors of some rows.

    Args:
        source: The images.
        rows: Slice of the images for this request.
        model: Selector of the model.
        seed: Seed of the draws; None for no draws.
        offset: Index of the source's first row in the seed's sequence.
        scaled: Whether latents are scaled by the model's `latent_scaling`.
        latent_dtype: Dtype of the latents on the wire; None for float32.
        labels: Labels of all rows of the source.
    """
    request = pb.EncodeRequest(
        model=model,
        draw=seed is not None,
        seed=seed,
        offset=offset + rows.start,
        scaled=scaled,
        latent_dtype=latent_dtype,
    )
    source.fill(request.images, rows)
    if labels is not None:
        request.labels.extend(part(labels, rows))
    return request


def decode_request(
    z: NDArray[Any],
    model: pb.ModelSelector,
    image_format: pb.ImageFormat,
    *,
    scaled: bool = False,
    unclipped: bool = False,
    quality: int | None = None,
    labels: Sequence[int] = (),
) -> pb.DecodeRequest:
    """Builds a request for the images of latents [N, D] or [N, c, h, w]."""
    request = pb.DecodeRequest(
        model=model, format=image_format, scaled=scaled, unclipped=unclipped, quality=quality
    )
    codec.fill_tensor(request.latents, z)
    if labels:
        request.labels.extend(labels)
    return request


def sample_request(
    n: int,
    image_format: pb.ImageFormat,
    *,
    latents: bool,
    seed: int | None = None,
    offset: int = 0,
    label: int | None = None,
    temperature: float | None = None,
    truncation: float | None = None,
    size: tuple[int, int] | None = None,
    quality: int | None = None,
    latent_dtype: LatentFormat = "float32",
    model: str = "",
    version: int = 0,
) -> pb.SampleRequest:
    """Builds a request for `n` new images, with a fresh seed by default.

    Raises:
        ValueError: n, the seed, the offset or the size is out of range.
    """
    n = scalars.count(n, "n")
    seed, offset = codec.check_draw(seed, offset, n)
    height, width = (None, None) if size is None else codec.size_of(size, "size")
    return pb.SampleRequest(
        model=selector(model, version),
        count=n,
        seed=codec.fresh_seed() if seed is None else seed,
        offset=offset,
        label=None if label is None else scalars.int32(label, "label"),
        temperature=None if temperature is None else scalars.real(temperature, "temperature"),
        truncation=None if truncation is None else scalars.real(truncation, "truncation"),
        format=image_format,
        return_latents=latents,
        quality=quality_of(quality),
        latent_dtype=formats.latent_format_message(latent_dtype),
        height=height,
        width=width,
    )


def posterior_of(replies: Sequence[pb.EncodeResponse], seed: int | None) -> Posterior:
    """Joins the posteriors of replies."""
    return Posterior(
        mean=codec.joined([reply.mean for reply in replies]),
        log_var=codec.joined_where_sent(replies, "log_var"),
        z=None if seed is None else codec.joined([reply.z for reply in replies]),
        seed=seed,
    )


def samples_of(replies: Sequence[pb.SampleResponse]) -> Samples:
    """Joins the samples of replies that have latents."""
    return Samples(
        images=codec.joined([reply.images.tensor for reply in replies]),
        latents=codec.joined([reply.latents for reply in replies]),
        seed=replies[0].seed,
        offset=replies[0].offset,
        labels=_labels_of(replies),
    )


def _labels_of(replies: Sequence[pb.SampleResponse]) -> NDArray[np.int64] | None:
    """Joins the labels of replies; None if the model is not conditional."""
    if not replies[0].labels:
        return None
    return np.concatenate([np.array(reply.labels, np.int64) for reply in replies])


def quality_of(quality: int | None) -> int | None:
    """Returns the quality of JPEG and WebP files; None for the server's default.

    Raises:
        TypeError: `quality` is not a whole number.
        ValueError: `quality` is out of range.
    """
    return None if quality is None else scalars.within(quality, "quality", 1, 100)


def draw_of(draw: bool, seed: Any, offset: Any, rows: int) -> tuple[int | None, int]:
    """Returns seed and offset of a draw.

    If a draw is requested without a seed, the seed is fresh; without a draw it is None. Called
    before the rows are split into chunks, since all chunks share the seed.

    Raises:
        TypeError: The seed or the offset is not a whole number.
        ValueError: The seed or the offset is out of range.
    """
    seed, offset = codec.check_draw(seed, offset, rows)
    return codec.fresh_seed() if draw and seed is None else seed, offset
