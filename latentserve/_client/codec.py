"""Builds requests and reads replies: pure functions that every client shares."""

import math
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client.values import ModelIdentity, ModelInfo, RefusedModel, Reloaded, ServerInfo
from latentserve.errors import ProtocolError
from latentserve.v1 import admin_service_pb2, tensor_pb2
from latentserve.v1 import latent_service_pb2 as pb

T = TypeVar("T")

#: How images come back: float32 in [0, 1], uint8, or PNG files.
Format = Literal["float32", "uint8", "png"]
ArrayFormat = Literal["float32", "uint8"]
Method = Literal["linear", "spherical"]
#: An array as `image_source` takes it, or the contents of PNG and JPEG files.
Images = ArrayLike | Sequence[bytes]
#: One image or one latent: an array, or the content of a PNG or JPEG file.
Point = ArrayLike | bytes

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
_FORMATS = {
    "float32": pb.IMAGE_FORMAT_FLOAT32,
    "uint8": pb.IMAGE_FORMAT_UINT8,
    "png": pb.IMAGE_FORMAT_PNG,
}
_METHODS = {
    "linear": pb.INTERPOLATION_METHOD_LINEAR,
    "spherical": pb.INTERPOLATION_METHOD_SPHERICAL,
}


def fresh_seed() -> int:
    """A seed nobody has used: 53 random bits, exact in every language's numbers."""
    return secrets.randbits(53)


@dataclass(frozen=True)
class ImageSource:
    """Images to be sent, as an array or as files.

    Attributes:
        content: Rows of an array, or the contents of files.
        resize: Whether files of another size or colour mode are to be made fit.
    """

    content: NDArray[Any] | Sequence[bytes]
    resize: bool = False

    def __len__(self) -> int:
        return len(self.content)

    def message(self, rows: slice) -> tensor_pb2.Images:
        """Some of its rows as a message."""
        images = tensor_pb2.Images()
        self.fill(images, rows)
        return images

    def fill(self, images: tensor_pb2.Images, rows: slice) -> None:
        """Writes some of its rows into a message, in which they are not copied once more."""
        part = self.content[rows]
        if isinstance(part, np.ndarray):
            fill_tensor(images.tensor, part)
        else:
            images.encoded.resize = self.resize
            images.encoded.files.extend(part)

    def piece(self, start: int, most_rows: int, most_bytes: int) -> slice:
        """The rows from `start` on that fit into one message.

        Args:
            start: The first of them.
            most_rows: Most rows.
            most_bytes: Most bytes of files; a larger file goes alone, and the server
                refuses it by name.
        """
        stop = min(start + most_rows, len(self.content))
        if isinstance(self.content, np.ndarray):
            return slice(start, stop)
        size = 0
        for index in range(start, stop):
            # Its tag and its length take a few bytes more.
            size += len(self.content[index]) + 16
            if size > most_bytes and index > start:
                return slice(start, index)
        return slice(start, stop)


def image_source(images: Images, *, resize: bool = False) -> ImageSource:
    """Returns images as they can be sent.

    Args:
        images: [N, C, H, W], [N, H, W] or [N, C*H*W], uint8 or floats in [0, 1]; or the
            contents of PNG and JPEG files.
        resize: Whether files of another size or colour mode are to be made fit.

    Raises:
        TypeError: Of a dtype that cannot be sent.
        ValueError: With fewer than two axes, or without rows.
    """
    if isinstance(images, bytes):
        raise TypeError("images: got one file, wanted a list of them")
    if isinstance(images, Sequence) and images and all(isinstance(each, bytes) for each in images):
        return ImageSource(images, resize)  # type: ignore[arg-type]  # they are all bytes
    return ImageSource(_sendable(np.asarray(images), "images", 2))


def point_message(point: Point, what: str, *, resize: bool) -> tensor_pb2.Images | NDArray[Any]:
    """Returns one image as a message, or one latent as an array [D].

    Args:
        point: A latent [D], an image [C, H, W] or [H, W], or the content of a file.
        what: Its name, for the error.
        resize: As `image_source`.

    Raises:
        TypeError: Of a dtype that cannot be sent.
        ValueError: With another number of axes.
    """
    if isinstance(point, bytes):
        return image_source([point], resize=resize).message(slice(0, 1))
    array = _sendable(np.asarray(point), what, 1)
    if array.ndim == 1:
        return array
    if array.ndim not in (2, 3):
        raise ValueError(
            f"{what}: got shape {list(array.shape)}, wanted a latent [D] or an image [C, H, W] or "
            "[H, W]"
        )
    return tensor_pb2.Images(tensor=to_tensor(array[None]))


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


def to_tensor(array: NDArray[Any]) -> tensor_pb2.Tensor:
    """Writes a float32, float16 or uint8 array as a tensor."""
    tensor = tensor_pb2.Tensor()
    fill_tensor(tensor, array)
    return tensor


def fill_tensor(tensor: tensor_pb2.Tensor, array: NDArray[Any]) -> None:
    """As `to_tensor`, into a tensor that is empty: that of a message, to spare a copy."""
    dtype = _WIRE_DTYPES[array.dtype.newbyteorder("=")]
    tensor.dtype = dtype
    tensor.shape.extend(array.shape)
    tensor.data = array.astype(_DTYPES[dtype], copy=False).tobytes()


def to_array(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """Reads a tensor; the array is a read-only view of its bytes.

    Raises:
        ProtocolError: Of an unknown dtype or a wrong number of bytes.
    """
    dtype = _DTYPES.get(tensor.dtype)
    shape = tuple(tensor.shape)
    data = tensor.data  # each access makes a copy
    if dtype is None or math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(
            f"tensor: dtype {tensor.dtype}, shape {list(shape)}, {len(data)} bytes "
            "do not belong together"
        )
    return np.frombuffer(data, dtype).reshape(shape)


def joined(tensors: Sequence[tensor_pb2.Tensor]) -> NDArray[Any]:
    """Reads tensors and puts their rows together, in an array of the caller's own.

    Raises:
        ProtocolError: As `to_array`.
    """
    if len(tensors) == 1:
        return to_array(tensors[0]).copy()
    return np.concatenate([to_array(tensor) for tensor in tensors])


def joined_where_sent(replies: Sequence[Any], name: str) -> NDArray[Any] | None:
    """Puts the rows of an optional tensor together; None where no reply has it.

    Raises:
        ProtocolError: Some have it and some not, or as `to_array`.
    """
    if not any(reply.HasField(name) for reply in replies):
        return None
    return joined([getattr(reply, name) for reply in replies])


def joined_images(
    replies: Sequence[tensor_pb2.Images], image_format: Format
) -> NDArray[Any] | list[bytes]:
    """Puts the images of replies together, in the format that was asked for.

    Raises:
        ProtocolError: As `to_array`.
    """
    if image_format == "png":
        return [file for images in replies for file in images.encoded.files]
    return joined([images.tensor for images in replies])


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
        max_queue_rows=reply.limits.max_queue_rows,
        max_queue_bytes=reply.limits.max_queue_bytes,
        max_score_draws=reply.limits.max_score_draws,
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
        prior_mean=tuple(model.prior_mean),
        prior_std=tuple(model.prior_std),
        has_percentiles=model.has_percentiles,
    )


def read_reloaded(reply: admin_service_pb2.ReloadResponse) -> Reloaded:
    """Reads the reply to Reload."""

    def identities(models: Iterable[pb.ModelIdentity]) -> tuple[ModelIdentity, ...]:
        return tuple(ModelIdentity(each.name, each.version) for each in models)

    return Reloaded(
        serving=identities(reply.serving),
        added=identities(reply.added),
        removed=identities(reply.removed),
        refused=tuple(
            RefusedModel(each.name, each.version, each.problem) for each in reply.refused
        ),
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


def format_message(image_format: str) -> pb.ImageFormat:
    """How images are to come back.

    Raises:
        ValueError: It is no such format.
    """
    return _named(_FORMATS, "dtype", image_format)


def method_message(method: str) -> pb.InterpolationMethod:
    """How to interpolate.

    Raises:
        ValueError: It is no such method.
    """
    return _named(_METHODS, "method", method)


def _named(names: Mapping[str, T], what: str, given: str) -> T:
    try:
        return names[given]
    except (KeyError, TypeError):
        wanted = " or ".join(map(repr, names))
        raise ValueError(f"{what}: got {given!r}, wanted {wanted}") from None
