"""Plans of `restyle`: images of one class, or several of one thing, in other classes."""

import dataclasses
from typing import Any

import grpc
import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import codec, formats, requests, unary
from latentserve._client.chunks import in_chunks
from latentserve._client.describe import Limits
from latentserve._client.labels import label_array, part
from latentserve._client.parameters import ArrayFormat, Images
from latentserve._client.plans import Plan, UnaryCall
from latentserve.errors import FailedPrecondition, InvalidArgument, NotFound


def restyle(
    limits: Limits,
    images: Images,
    labels: ArrayLike,
    to: ArrayLike,
    *,
    together: bool = False,
    dtype: ArrayFormat = "float32",
    **options: Any,
) -> Plan[NDArray[Any]]:
    """Encodes images, and decodes each of them, or all together, in every class of `to`."""
    targets = label_array(to, "to")
    formats.array_format_message(dtype)
    if together:
        try:
            return (yield from _together(limits, images, labels, targets, dtype, **options))
        except NotFound:
            if options.get("version"):
                raise
        # The version that encoded the images was replaced before it decoded anything.
        return (yield from _together(limits, images, labels, targets, dtype, **options))
    made: Any = yield from unary.reconstruct(
        limits, images, labels=labels, to=targets, dtype=dtype, **options
    )
    return made.reshape(-1, len(targets), *made.shape[1:])  # type: ignore[no-any-return]


def _together(
    limits: Limits,
    images: Images,
    labels: ArrayLike,
    targets: NDArray[np.int32],
    dtype: ArrayFormat,
    *,
    model: str = "",
    version: int = 0,
    **options: Any,
) -> Plan[NDArray[Any]]:
    """Encodes images, joins their posteriors, and decodes these once in every class.

    Raises:
        FailedPrecondition: The model is a plain autoencoder.
    """
    posterior, answered_by = yield from unary.encode_by_version(
        limits, images, labels=labels, model=model, version=version, **options
    )
    if posterior.log_var is None:
        raise FailedPrecondition(
            "together: got True, but the model is a plain autoencoder; it has no posteriors to "
            "join",
            grpc.StatusCode.FAILED_PRECONDITION,
        )
    one = posterior.joined()
    latents = np.repeat(one.mean if one.z is None else one.z, len(targets), axis=0)
    # Only the version that encoded the images understands their latents.
    selector = requests.selector(model, version or answered_by)

    def call(rows: slice) -> UnaryCall:
        image_format = formats.array_format_message(dtype)
        request = requests.decode_request(
            latents[rows], selector, image_format, labels=part(targets, rows)
        )
        return UnaryCall("Decode", request)

    try:
        replies = yield from in_chunks(limits, latents, call, model, version, latents=True)
    except InvalidArgument as error:
        _name_targets(error)
        raise
    made: Any = codec.joined_images([reply.images for reply in replies], dtype)
    return made  # type: ignore[no-any-return]


def _name_targets(error: InvalidArgument) -> None:
    """Makes an error about labels of Decode name `to`, where the caller gave them."""
    error.args = (error.args[0].replace("labels", "to", 1),)
    error.violations = tuple(
        dataclasses.replace(violation, field=violation.field.replace("labels", "to", 1))
        for violation in error.violations
    )
