"""Conversion of arrays, image files and latents to messages and back, without I/O."""

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from latentserve._client import inputs, scalars
from latentserve._client.formats import BFLOAT16, FILE_FORMATS
from latentserve._client.parameters import Format, Images, Point, Resize
from latentserve.errors import ProtocolError
from latentserve.v1 import tensor_pb2

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
_BFLOAT16_BITS = np.dtype("<u2")


def fresh_seed() -> int:
    """Returns a random seed of 53 bits, which a double can hold exactly."""
    return secrets.randbits(53)


def check_draw(seed: Any, offset: Any, rows: int) -> tuple[int | None, int]:
    """Checks that a seed is valid and that the rows are within its sequence.

    Args:
        seed: Seed, or None.
        offset: Index of the first row in the sequence.
        rows: Number of rows.

    Returns:
        Seed, or None, and offset; as `int`.

    Raises:
        TypeError: A value is not a whole number.
        ValueError: A value is out of range; the message gives the range.
    """
    if seed is not None:
        seed = scalars.within(seed, "seed", 0, 2**64 - 1)
    offset = scalars.whole(offset, "offset")
    if not 0 <= offset <= 2**64 - rows:
        raise ValueError(f"offset: got {offset}, wanted 0 to 2^64 - {rows} for {rows} rows")
    return seed, offset


@dataclass(frozen=True)
class ImageSource:
    """Images to send, as an array or as files.

    Attributes:
        content: Array whose first axis is the rows, or a list of file contents, one per row.
        resize: Whether the server converts files of another size or colour mode; height and width
            to convert them to.
        offset: Index of the first row in the seed's sequence, for a batch of a stream that does
            not follow on the batch before it; None for one that does.
    """

    content: NDArray[Any] | Sequence[bytes]
    resize: Resize = False
    offset: int | None = None

    def __len__(self) -> int:
        return len(self.content)

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width that files are converted to, if they were given."""
        return self.resize if isinstance(self.resize, tuple) else None

    def message(self, rows: slice) -> tensor_pb2.Images:
        """Returns a message with a slice of the rows."""
        images = tensor_pb2.Images()
        self.fill(images, rows)
        return images

    def fill(self, images: tensor_pb2.Images, rows: slice) -> None:
        """Writes a slice of the rows into an empty message, without the copy of `message`."""
        part = self.content[rows]
        if isinstance(part, np.ndarray):
            fill_tensor(images.tensor, part)
        else:
            encoded = images.encoded
            if isinstance(self.resize, tuple):
                encoded.height, encoded.width = self.resize
            encoded.resize = bool(self.resize)
            encoded.files.extend(part)


def image_source(images: Images, *, resize: Resize = False) -> ImageSource:
    """Checks images and returns them in a form that can be sent.

    Args:
        images: [N, C, H, W], [N, H, W] or [N, C*H*W], uint8 or floats in [0, 1]; or the
            contents of PNG, JPEG and WebP files.
        resize: As in `ImageSource`.

    Raises:
        TypeError: The dtype cannot be sent, or `resize` is neither a bool nor a pair of whole
            numbers.
        ValueError: The array has fewer than two axes, or no rows, or a size to resize it to.
    """
    files = inputs.file_contents(images, "images")
    if files is not None:
        return ImageSource(files, resize_of(resize))
    refuse_size(resize)
    return ImageSource(_sendable(images, "images", 2))


def size_of(size: Any, what: str) -> tuple[int, int]:
    """Checks a height and a width.

    Args:
        size: Height and width, in pixels.
        what: Name of the parameter, for errors.

    Raises:
        TypeError: `size` is not a pair of whole numbers.
        ValueError: A number is below 1.
    """
    if not isinstance(size, Sequence | np.ndarray) or isinstance(size, str) or len(size) != 2:
        raise TypeError(f"{what}: got {scalars.shown(size)}, wanted (height, width)")
    height, width = (scalars.count(side, what) for side in size)
    return height, width


def resize_of(resize: Resize) -> Resize:
    """Checks whether files are resized, or the height and width that they are resized to.

    Raises:
        TypeError: `resize` is neither a bool nor a pair of whole numbers.
        ValueError: A number is below 1.
    """
    if resize is None or isinstance(resize, bool | np.bool_):
        return bool(resize)
    if isinstance(resize, Sequence | np.ndarray) and not isinstance(resize, str):
        return size_of(resize, "resize")
    got = scalars.shown(resize)
    raise TypeError(f"resize: got {got}, wanted True, False or (height, width)")


def given_size(resize: Resize) -> tuple[int, int] | None:
    """Returns height and width if `resize` gives them.

    Raises:
        TypeError: `resize` is neither a bool nor a pair of whole numbers.
        ValueError: A number is below 1.
    """
    target = resize_of(resize)
    return target if isinstance(target, tuple) else None


def refuse_size(resize: Resize) -> None:
    """Refuses a size to resize to, where images are an array: arrays keep their size.

    Raises:
        TypeError: `resize` is neither a bool nor a pair of whole numbers.
        ValueError: `resize` is a height and a width.
    """
    if (size := given_size(resize)) is not None:
        raise ValueError(f"resize: got {size} with an array, wanted image files")


def point_array(point: Point, what: str, resize: Resize = False) -> bytes | NDArray[Any]:
    """Returns one image or one latent as the content of a file or as an array of 1 to 3 axes.

    Args:
        point: A latent [D] or [c, h, w], an image [C, H, W] or [H, W], or the content of a file.
        what: Name of the parameter, for errors.
        resize: As in `ImageSource`.

    Raises:
        TypeError: The dtype cannot be sent.
        ValueError: The array has the wrong number of axes, or no rows, or a size to resize it to.
    """
    file = inputs.file_content(point)
    if file is not None:
        return file
    refuse_size(resize)
    array = _sendable(point, what, 1)
    if array.ndim not in (1, 2, 3):
        raise ValueError(
            f"{what}: got shape {list(array.shape)}, wanted a latent [D] or [c, h, w], or an image "
            "[C, H, W] or [H, W]"
        )
    return array


def image_message(point: bytes | NDArray[Any], *, resize: Resize) -> tensor_pb2.Images:
    """Returns one image, a file or an array without a first axis of rows, as a message."""
    content = [point] if isinstance(point, bytes) else point[None]
    return ImageSource(content, resize_of(resize)).message(slice(0, 1))


def latent_array(z: ArrayLike) -> NDArray[Any]:
    """Returns latents as an array of floats that can be sent, [N, D] or [N, c, h, w].

    Raises:
        TypeError: The dtype cannot be sent.
        ValueError: The array does not have two or four axes, or has no rows.
    """
    array = _sendable(z, "latents", 2)
    if array.ndim not in (2, 4):
        alone = "; one latent needs a first axis of rows, z[None]" if array.ndim == 3 else ""
        raise ValueError(
            f"latents: got shape {list(array.shape)}, wanted [N, D] or [N, c, h, w]{alone}"
        )
    if array.dtype == np.uint8:
        raise TypeError("latents: got dtype uint8, wanted float32, float16 or bfloat16")
    return array


def _sendable(value: Any, what: str, axes: int) -> NDArray[Any]:
    """Checks that an array has rows, at least `axes` axes and a valid dtype; casts float64."""
    array = inputs.as_array(value, what)
    if array.ndim < axes:
        raise ValueError(f"{what}: got shape {list(array.shape)}, wanted a first axis of rows")
    if len(array) == 0:
        raise ValueError(f"{what}: got no rows, wanted at least 1")
    native = array.dtype.newbyteorder("=")
    if native == np.float64:
        # NumPy's default for Python floats; the graphs compute in float32.
        return array.astype(np.float32)
    if native not in _WIRE_DTYPES and native.name != BFLOAT16:
        raise TypeError(
            f"{what}: got dtype {array.dtype}, wanted float32, float16, bfloat16 or uint8"
        )
    return array


def to_tensor(array: NDArray[Any]) -> tensor_pb2.Tensor:
    """Returns the tensor message of a float32, float16, bfloat16 or uint8 array."""
    tensor = tensor_pb2.Tensor()
    fill_tensor(tensor, array)
    return tensor


def fill_tensor(tensor: tensor_pb2.Tensor, array: NDArray[Any]) -> None:
    """Writes an array into an empty tensor message, without the copy of `to_tensor`."""
    dtype = _WIRE_DTYPES.get(array.dtype.newbyteorder("="), tensor_pb2.DATA_TYPE_BFLOAT16)
    tensor.dtype = dtype
    tensor.shape.extend(array.shape)
    if dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        tensor.data = array.view(np.uint16).astype(_BFLOAT16_BITS, copy=False).tobytes()
    else:
        tensor.data = array.astype(_DTYPES[dtype], copy=False).tobytes()


def to_array(tensor: tensor_pb2.Tensor) -> NDArray[Any]:
    """Returns the array of a tensor message, as a read-only view of its bytes.

    Values of bfloat16 are returned as float32.

    Raises:
        ProtocolError: The dtype is unknown, or the number of bytes does not match the shape.
    """
    if tensor.dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        dtype: np.dtype[Any] | None = _BFLOAT16_BITS
    else:
        dtype = _DTYPES.get(tensor.dtype)
    shape = tuple(tensor.shape)
    data = tensor.data  # each access makes a copy
    if dtype is None or math.prod(shape) * dtype.itemsize != len(data):
        raise ProtocolError(
            f"tensor: got dtype {tensor.dtype} and {len(data)} bytes, which do not match shape "
            f"{list(shape)}"
        )
    array = np.frombuffer(data, dtype).reshape(shape)
    if tensor.dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        # bfloat16 is the upper half of a float32.
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def joined(tensors: Sequence[tensor_pb2.Tensor]) -> NDArray[Any]:
    """Joins the rows of tensors in one writable array.

    Raises:
        ProtocolError: As from `to_array`.
        ValueError: The rows differ in shape.
    """
    if len(tensors) == 1:
        return to_array(tensors[0]).copy()
    arrays = [to_array(tensor) for tensor in tensors]
    first = arrays[0].shape[1:]
    for array in arrays:
        if array.shape[1:] != first:
            raise ValueError(
                f"images: got results of shapes {list(first)} and {list(array.shape[1:])}, wanted "
                "images of one size in a call (resize=(height, width) converts files to one)"
            )
    return np.concatenate(arrays)


def joined_where_sent(replies: Sequence[Any], name: str) -> NDArray[Any] | None:
    """Joins the rows of an optional tensor; None if no reply has it.

    Args:
        replies: Messages with an optional tensor.
        name: Name of the tensor's field.

    Raises:
        ProtocolError: Only some replies have the tensor, or one is malformed.
    """
    if not any(reply.HasField(name) for reply in replies):
        return None
    return joined([getattr(reply, name) for reply in replies])


def joined_images(
    replies: Sequence[tensor_pb2.Images], image_format: Format
) -> NDArray[Any] | list[bytes]:
    """Joins the images of replies into one array, or into a list of files.

    Args:
        replies: Images, all of the same format.
        image_format: The format that they were requested in.

    Raises:
        ProtocolError: As from `to_array`.
    """
    if image_format in FILE_FORMATS:
        return [file for images in replies for file in images.encoded.files]
    return joined([images.tensor for images in replies])
