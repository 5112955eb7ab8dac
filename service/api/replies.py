"""Fills replies with model identity, timing and images."""

import time
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api import codec
from service.api.codec import Format, Pixels
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
    engine: Engine, reply: Pictured, pixels: Pixels, image_format: Format, call: Call
) -> Pictured | Chunks:
    """Adds images to a reply whose other fields are set.

    Args:
        engine: Runs PNG compression in a thread, since it would block the event loop.
        reply: The reply without its images.
        pixels: [N, C, H, W]; float32 in [0, 1] for FLOAT32, else uint8.
        image_format: Format to write.
        call: The per-call context.

    Returns:
        The reply; serialised already if the images are large.
    """
    if image_format is Format.PNG:
        await engine.in_thread(lambda: codec.put_images(reply.images, pixels, image_format), call)
        return reply
    if pixels.nbytes <= _COPIED_BYTES:
        codec.put_images(reply.images, pixels, image_format)
        return reply
    field = reply.DESCRIPTOR.fields_by_name["images"].number
    tensor, payload = codec.bare_tensor(pixels)
    return with_payload(reply, (field, *codec.TENSOR_OF_IMAGES), tensor, codec.DATA, payload)


def in_stream(message: type[Streamed], reply: Any) -> Streamed | Chunks:
    """Wraps a reply, serialised or not, in the response message of a stream."""
    if isinstance(reply, tuple):
        return nested(message.DESCRIPTOR.fields_by_name["response"].number, reply)
    return message(response=reply)


def put_scores(tensor: tensor_pb2.Tensor, values: NDArray[np.float64]) -> None:
    """Fills an empty Tensor message with one value per row, as float32."""
    codec.put_tensor(tensor, values.astype(np.float32))
