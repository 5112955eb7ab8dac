"""Fills replies with model identity, timing and images."""

import time
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.codec import Pixels
from service.api.formats import TENSOR_DTYPES, ImageOutput
from service.api.scaling import Scaling
from service.api.wire import Chunks, nested, with_payload
from service.engine.call import Call
from service.engine.engine import Engine
from service.models.model import Model

Streamed = TypeVar("Streamed", pb.DecodeStreamResponse, pb.SampleStreamResponse)
Signed = TypeVar(
    "Signed",
    pb.EncodeResponse,
    pb.DecodeResponse,
    pb.SampleResponse,
    pb.ReconstructResponse,
    pb.InterpolateResponse,
    pb.TraverseResponse,
    pb.ScoreResponse,
)
Pictured = TypeVar(
    "Pictured",
    pb.DecodeResponse,
    pb.SampleResponse,
    pb.ReconstructResponse,
    pb.InterpolateResponse,
    pb.TraverseResponse,
)

# Up to this size, protobuf copies images in less time than `with_payload` takes.
_COPIED_BYTES = 64 * 1024
# Up to this size, converting latents takes less time than waking a thread to convert them.
_CONVERTED_BYTES = 256 * 1024


def signed(reply: Signed, model: Model, call: Call) -> Signed:
    """Adds the model's identity and the call's timing to a reply."""
    identity, timing = reply.model, reply.timing
    identity.name, identity.version = model.manifest.name, model.manifest.version
    timing.queue_seconds = call.timing.queue
    timing.compute_seconds = call.timing.compute
    timing.total_seconds = time.monotonic() - call.arrived
    timing.batch_rows = call.timing.batch_rows
    return reply


async def with_images(
    engine: Engine, reply: Pictured, pixels: Pixels, wanted: ImageOutput, call: Call
) -> Pictured | Chunks:
    """Adds images to a reply whose other fields are set.

    Args:
        engine: Runs compression and conversion in a thread, since they would block the event loop.
        reply: The reply without its images.
        pixels: [N, C, H, W]; uint8 if `wanted.format.as_uint8`, else float32.
        wanted: How to write them.
        call: The per-call context.

    Returns:
        The reply; serialised already if the images are large.
    """
    image_format, quality, _ = wanted
    if image_format.as_files:
        await engine.in_thread(
            lambda: codec.put_images(reply.images, pixels, image_format, quality), call
        )
        return reply
    if pixels.nbytes <= _COPIED_BYTES:
        codec.put_images(reply.images, pixels, image_format)
        return reply
    field = reply.DESCRIPTOR.fields_by_name["images"].number
    dtype = TENSOR_DTYPES[image_format]
    if image_format.as_half:
        tensor, payload = await engine.in_thread(lambda: codec.bare_tensor(pixels, dtype), call)
    else:
        tensor, payload = codec.bare_tensor(pixels)
    return with_payload(reply, (field, *codec.TENSOR_OF_IMAGES), tensor, codec.DATA, payload)


async def put_latents(
    engine: Engine,
    tensor: tensor_pb2.Tensor,
    latents: NDArray[np.float32],
    dtype: tensor_pb2.DataType,
    call: Call,
    scaling: Scaling | None = None,
) -> None:
    """Fills an empty Tensor message with latents.

    Args:
        engine: Runs large conversions in a thread, since they would block the event loop.
        tensor: The message to fill.
        latents: float32 [N, D] or [N, c, h, w].
        dtype: Element type to send them as.
        call: The per-call context.
        scaling: How to scale them; None to send them as they are.
    """

    def put() -> None:
        codec.put_tensor(tensor, latents if scaling is None else scaling.scaled(latents), dtype)

    as_they_are = scaling is None and dtype == tensor_pb2.DATA_TYPE_FLOAT32
    if as_they_are or latents.nbytes <= _CONVERTED_BYTES:
        put()
    else:
        await engine.in_thread(put, call)


def in_stream(message: type[Streamed], reply: Any) -> Streamed | Chunks:
    """Wraps a reply, serialised or not, in the response message of a stream."""
    if isinstance(reply, tuple):
        return nested(message.DESCRIPTOR.fields_by_name["response"].number, reply)
    return message(response=reply)


def put_scores(tensor: tensor_pb2.Tensor, values: NDArray[np.float64]) -> None:
    """Fills an empty Tensor message with one value per row, as float32."""
    codec.put_tensor(tensor, values.astype(np.float32))
