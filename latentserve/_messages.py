"""Builds requests and reads replies: pure functions that every client shares."""

import math
import secrets
from collections.abc import Sequence
from datetime import UTC
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._values import ModelInfo, ServerInfo
from latentserve.errors import ProtocolError
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

Format = Literal["float32", "uint8"]

_WIRE_DTYPES = {
    np.dtype(np.float32): tensor_pb2.DATA_TYPE_FLOAT32,
    np.dtype(np.float16): tensor_pb2.DATA_TYPE_FLOAT16,
    np.dtype(np.uint8): tensor_pb2.DATA_TYPE_UINT8,
}
_DTYPES: dict[int, np.dtype[Any]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}
_FORMATS = {"float32": pb.IMAGE_FORMAT_FLOAT32, "uint8": pb.IMAGE_FORMAT_UINT8}


def fresh_seed() -> int:
    """A seed nobody has used: 53 random bits, exact in every language's numbers."""
    return secrets.randbits(53)


def image_array(images: ArrayLike) -> NDArray[Any]:
    """Returns images as an array that can be sent.

    Args:
        images: [N, C, H, W], [N, H, W] or [N, C*H*W]; uint8, or floats in [0, 1].

    Raises:
        TypeError: Of a dtype that cannot be sent.
        ValueError: With fewer than two axes.
    """
    return _sendable(np.asarray(images), "images", 2)


def latent_array(z: ArrayLike) -> NDArray[Any]:
    """Returns latents as an array that can be sent, float32 or float16 [N, D].

    Raises:
        TypeError: Of a dtype that cannot be sent.
        ValueError: Not of two axes.
    """
    array = _sendable(np.asarray(z), "latents", 2)
    if array.ndim != 2:
        raise ValueError(f"latents: got shape {list(array.shape)}, wanted [N, D]")
    if array.dtype == np.uint8:
        raise TypeError("latents: got dtype uint8, wanted float32 or float16")
    return array


def check_draw(seed: int | None, offset: int, rows: int) -> None:
    """Refuses a seed or an offset that the sequence of a seed does not have.

    Raises:
        ValueError: Naming it, the value got and the value wanted.
    """
    if seed is not None and not 0 <= seed < 2**64:
        raise ValueError(f"seed: got {seed}, wanted 0 to 2^64 - 1")
    if not 0 <= offset <= 2**64 - rows:
        raise ValueError(f"offset: got {offset}, wanted 0 to 2^64 - {rows} for {rows} rows")


def selector(model: str, version: int) -> pb.ModelSelector:
    """Names a model; empty for the default one, version 0 for the one being served."""
    return pb.ModelSelector(name=model, version=version)


def encode_request(
    images: NDArray[Any], model: pb.ModelSelector, seed: int | None, offset: int
) -> pb.EncodeRequest:
    """Asks for posteriors and, where a seed is given, for a draw from each."""
    return pb.EncodeRequest(
        model=model,
        images=tensor_pb2.Images(tensor=to_tensor(images)),
        draw=seed is not None,
        seed=seed,
        offset=offset,
    )


def decode_request(
    z: NDArray[Any], model: pb.ModelSelector, image_format: Format
) -> pb.DecodeRequest:
    """Asks for the images of latents."""
    return pb.DecodeRequest(model=model, latents=to_tensor(z), format=_format(image_format))


def sample_request(
    count: int,
    model: pb.ModelSelector,
    *,
    seed: int,
    offset: int,
    label: int | None,
    temperature: float | None,
    truncation: float | None,
    image_format: Format,
    return_latents: bool,
) -> pb.SampleRequest:
    """Asks for new images and, where wanted, their latents."""
    return pb.SampleRequest(
        model=model,
        count=count,
        seed=seed,
        offset=offset,
        label=label,
        temperature=temperature,
        truncation=truncation,
        format=_format(image_format),
        return_latents=return_latents,
    )


def to_tensor(array: NDArray[Any]) -> tensor_pb2.Tensor:
    """Writes a float32, float16 or uint8 array as a tensor."""
    dtype = _WIRE_DTYPES[array.dtype.newbyteorder("=")]
    data = np.ascontiguousarray(array, _DTYPES[dtype]).tobytes()
    return tensor_pb2.Tensor(dtype=dtype, shape=array.shape, data=data)


def to_array(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """Reads a tensor; the array is a read-only view of its bytes.

    Raises:
        ProtocolError: Of an unknown dtype or a wrong number of bytes.
    """
    dtype = _DTYPES.get(tensor.dtype)
    data = tensor.data  # each access makes a copy
    if dtype is None or math.prod(tensor.shape) * dtype.itemsize != len(data):
        raise ProtocolError(
            f"tensor: dtype {tensor.dtype}, shape {list(tensor.shape)}, {len(data)} bytes "
            "do not belong together"
        )
    return np.frombuffer(data, dtype).reshape(tensor.shape)


def joined(tensors: Sequence[tensor_pb2.Tensor]) -> NDArray[Any]:
    """Reads tensors and puts their rows together, in an array of the caller's own.

    Raises:
        ProtocolError: As `to_array`.
    """
    return np.concatenate([to_array(tensor) for tensor in tensors])


def joined_where_sent(replies: Sequence[Any], name: str) -> NDArray[Any] | None:
    """Puts the rows of an optional tensor together; None where no reply has it.

    Raises:
        ProtocolError: Some have it and some not, or as `to_array`.
    """
    if not any(reply.HasField(name) for reply in replies):
        return None
    return joined([getattr(reply, name) for reply in replies])


def read_server_info(reply: pb.GetServerInfoResponse) -> ServerInfo:
    """Reads the reply to GetServerInfo."""
    return ServerInfo(
        version=reply.version,
        onnxruntime_version=reply.onnxruntime_version,
        max_rows=reply.limits.max_rows,
        max_message_bytes=reply.limits.max_message_bytes,
        default_model=reply.default_model,
        device=reply.device,
        models=tuple(read_model_info(model) for model in reply.models),
    )


def read_model_info(model: pb.ModelInfo) -> ModelInfo:
    """Reads the description of a model."""
    shape = model.image_shape
    return ModelInfo(
        name=model.name,
        version=model.version,
        image_shape=(shape.channels, shape.height, shape.width),
        latent_dim=model.latent_dim,
        posterior=model.posterior,
        prior=model.prior,
        likelihood=model.likelihood,
        labels=tuple(model.labels),
        max_rows=model.max_rows,
        metrics=dict(model.metrics),
        devices={graph.name: graph.device for graph in model.graphs},
        checksums={graph.name: graph.sha256 for graph in model.graphs},
        dataset=model.dataset,
        created_at=model.created_at.ToDatetime(UTC),
        noise=model.noise,
        precision=model.precision,
    )


def _sendable(array: NDArray[Any], what: str, axes: int) -> NDArray[Any]:
    if array.ndim < axes:
        raise ValueError(f"{what}: got shape {list(array.shape)}, wanted a first axis of rows")
    if len(array) == 0:
        raise ValueError(f"{what}: got no rows, wanted at least 1")
    if array.dtype == np.float64:
        # Python's own floats; the graphs are float32.
        return array.astype(np.float32)
    if array.dtype.newbyteorder("=") not in _WIRE_DTYPES:
        raise TypeError(f"{what}: got dtype {array.dtype}, wanted float32, float16 or uint8")
    return array


def _format(image_format: Format) -> pb.ImageFormat:
    try:
        return _FORMATS[image_format]
    except KeyError:
        raise ValueError(f"dtype: got {image_format!r}, wanted 'float32' or 'uint8'") from None
