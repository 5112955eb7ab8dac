"""Builds requests and reads replies, for unary calls and streams."""

from collections.abc import Sequence
from typing import Any

from numpy.typing import NDArray

from latentserve._client import codec, scalars
from latentserve._client.codec import ImageSource
from latentserve._client.parameters import ArrayFormat
from latentserve._client.values import Posterior, Samples
from latentserve.v1 import latent_service_pb2 as pb


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
    source: ImageSource, rows: slice, model: pb.ModelSelector, seed: int | None, offset: int
) -> pb.EncodeRequest:
    """Builds a request for the posteriors of some rows.

    Args:
        source: The images.
        rows: Slice of the images for this request.
        model: Selector of the model.
        seed: Seed of the draws; None for no draws.
        offset: Index of the source's first row in the seed's sequence.
    """
    request = pb.EncodeRequest(
        model=model, draw=seed is not None, seed=seed, offset=offset + rows.start
    )
    source.fill(request.images, rows)
    return request


def decode_request(
    z: NDArray[Any], model: pb.ModelSelector, image_format: pb.ImageFormat
) -> pb.DecodeRequest:
    """Builds a request for the images of latents [N, D]."""
    request = pb.DecodeRequest(model=model, format=image_format)
    codec.fill_tensor(request.latents, z)
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
    model: str = "",
    version: int = 0,
) -> pb.SampleRequest:
    """Builds a request for `n` new images, with a fresh seed by default.

    Raises:
        ValueError: n, the seed or the offset is out of range.
    """
    n = scalars.count(n, "n")
    seed, offset = codec.check_draw(seed, offset, n)
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
    )


def array_format(dtype: ArrayFormat) -> pb.ImageFormat:
    """Returns the enum value of an image format that is an array.

    Raises:
        ValueError: `dtype` is not `float32` or `uint8`.
    """
    if dtype not in ("float32", "uint8"):
        raise ValueError(f"dtype: got {dtype!r}, wanted 'float32' or 'uint8'")
    return codec.format_message(dtype)


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
