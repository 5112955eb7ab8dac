"""Converts the tensors and picture files of messages to NumPy arrays and back, with validation."""

import functools
import math
import sys
from typing import Final

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import tensor_pb2
from service.api import pictures
from service.api.bfloat16 import from_bfloat16, to_bfloat16
from service.api.formats import TENSOR_DTYPES, Format
from service.engine.checks import check_latents, check_pixels
from service.errors import InvalidArgument

_DTYPES: dict[int, np.dtype[np.generic]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
    # Its bits: NumPy has no such type.
    tensor_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
}
#: Element types of latents in replies.
LATENT_DTYPES: Final = frozenset(
    (
        tensor_pb2.DATA_TYPE_FLOAT32,
        tensor_pb2.DATA_TYPE_FLOAT16,
        tensor_pb2.DATA_TYPE_BFLOAT16,
    )
)

#: Path of field numbers from an Images message to its tensor.
TENSOR_OF_IMAGES = (tensor_pb2.Images.DESCRIPTOR.fields_by_name["tensor"].number,)
#: Field number of a tensor's data.
DATA = tensor_pb2.Tensor.DESCRIPTOR.fields_by_name["data"].number

_LITTLE_ENDIAN = sys.byteorder == "little"

Pixels = NDArray[np.float32] | NDArray[np.uint8]


def rows_stated(images: tensor_pb2.Images) -> int:
    """Number of images that a message claims (by shape or file count), unvalidated; at least 1."""
    shape = images.tensor.shape  # empty without a tensor
    return max(1, shape[0] if shape else len(images.encoded.files))


def read_images(
    images: tensor_pb2.Images,
    field: str,
    shape: tuple[int, int, int],
    max_rows: int,
    max_pixels: int = pictures.MAX_PIXELS,
    nearest: pictures.Nearest | None = None,
) -> Pixels:
    """Reads and validates the images of a request.

    Args:
        images: The images' message.
        field: Path of the message in the request, for errors.
        shape: C, H and W of the images.
        max_rows: Limit on N.
        max_pixels: Limit on the pixels of a picture file.
        nearest: As for `pictures.read_files`.

    Returns:
        [N, C, H, W]; uint8, or float32 in [0, 1].

    Raises:
        InvalidArgument: No images; wrong dtype, shape, byte count, range or number of
            rows; or a file that is not a picture the model accepts.
    """
    source = images.WhichOneof("source")
    if source is None:
        raise InvalidArgument(field, "no images", f"{field}.tensor or {field}.encoded")
    if source == "encoded":
        field = f"{field}.encoded"
        files = images.encoded.files
        if not 1 <= len(files) <= max_rows:
            raise InvalidArgument(f"{field}.files", f"{len(files)} files", f"1 to {max_rows}")
        return pictures.read_files(files, field, shape, images.encoded.resize, max_pixels, nearest)
    field = f"{field}.tensor"
    tensor = images.tensor
    sizes = tuple(tensor.shape)
    if sizes[1:] not in image_shapes(shape):
        wanted = " or ".join(str(["N", *accepted]) for accepted in image_shapes(shape))
        raise InvalidArgument(f"{field}.shape", list(sizes), wanted.replace("'", ""))
    array = _array(tensor, sizes, field, max_rows).reshape(-1, *shape)
    if array.dtype.itemsize == 1:
        return array  # type: ignore[return-value] # UINT8
    pixels = _floats(array, tensor.dtype)
    check_pixels(pixels, field)
    return pixels


def read_latents(
    tensor: tensor_pb2.Tensor, field: str, shape: tuple[int, ...], max_rows: int
) -> NDArray[np.float32]:
    """Reads and validates the latents of a request.

    Args:
        tensor: The latents' message.
        field: Path of the message in the request, for errors.
        shape: Shape of one latent, [D] or [c, h, w]. The message may have the latter flattened.
        max_rows: Limit on N.

    Returns:
        float32 [N, D] or [N, c, h, w].

    Raises:
        InvalidArgument: Wrong dtype, shape, byte count or number of rows, or a value
            that is not finite or exceeds MAX_LATENT.
    """
    if tensor.dtype == tensor_pb2.DATA_TYPE_UINT8:
        raise InvalidArgument(f"{field}.dtype", "UINT8", "FLOAT32, FLOAT16 or BFLOAT16")
    sizes = tuple(tensor.shape)
    if sizes[1:] not in latent_shapes(shape):
        wanted = " or ".join(str(["N", *accepted]) for accepted in latent_shapes(shape))
        raise InvalidArgument(f"{field}.shape", list(sizes), wanted.replace("'", ""))
    latents = _floats(_array(tensor, sizes, field, max_rows), tensor.dtype).reshape(-1, *shape)
    check_latents(latents, field)
    return latents


def bare_tensor(
    array: Pixels, dtype: tensor_pb2.DataType | None = None
) -> tuple[tensor_pb2.Tensor, memoryview]:
    """Returns an array's Tensor message with `data` left empty, and a view of the bytes for it.

    Args:
        array: float32 or uint8.
        dtype: Element type to send float32 as; by default the array's own.
    """
    dtype = dtype or _wire_type(array)
    tensor = tensor_pb2.Tensor(dtype=dtype, shape=array.shape)
    return tensor, np.ascontiguousarray(_as_sent(array, dtype)).data.cast("B")


def put_tensor(
    tensor: tensor_pb2.Tensor, array: Pixels, dtype: tensor_pb2.DataType | None = None
) -> None:
    """Fills an empty Tensor message.

    Args:
        tensor: The message to fill.
        array: float32 or uint8.
        dtype: Element type to send float32 as; by default the array's own.
    """
    tensor.dtype = dtype = dtype or _wire_type(array)
    tensor.shape.extend(array.shape)
    tensor.data = _as_sent(array, dtype).tobytes()


def put_images(
    images: tensor_pb2.Images,
    pixels: Pixels,
    image_format: Format,
    quality: int = pictures.QUALITY,
) -> None:
    """Fills an empty Images message.

    Args:
        images: The message to fill.
        pixels: [N, C, H, W]; uint8 if `image_format.as_uint8`, else float32.
        image_format: Format to write.
        quality: Quality of JPEG and WebP files, 1 to 100.
    """
    if image_format.as_files:
        files = pictures.write_files(pixels.view(np.uint8), image_format.name, quality)
        images.encoded.files.extend(files)
    else:
        put_tensor(images.tensor, pixels, TENSOR_DTYPES[image_format])


def _wire_type(array: Pixels) -> tensor_pb2.DataType:
    return tensor_pb2.DATA_TYPE_UINT8 if array.itemsize == 1 else tensor_pb2.DATA_TYPE_FLOAT32


def _name(dtype: tensor_pb2.DataType) -> str:
    return tensor_pb2.DataType.Name(dtype).removeprefix("DATA_TYPE_").lower()


def _as_sent(array: Pixels, dtype: tensor_pb2.DataType) -> NDArray[np.generic]:
    """Converts a float32 or uint8 array to the elements of a message, little-endian."""
    sent: NDArray[np.generic] = array
    if dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        sent = to_bfloat16(array)  # type: ignore[arg-type]  # not uint8, so float32
    elif dtype == tensor_pb2.DATA_TYPE_FLOAT16:
        with np.errstate(over="ignore"):  # beyond 65504, values become infinite
            sent = array.astype(np.float16)
    return sent if _LITTLE_ENDIAN or sent.itemsize == 1 else sent.byteswap()


def _floats(array: NDArray[np.generic], dtype: tensor_pb2.DataType) -> NDArray[np.float32]:
    """Converts the elements of a FLOAT32, FLOAT16 or BFLOAT16 message to float32."""
    if dtype == tensor_pb2.DATA_TYPE_BFLOAT16:
        return from_bfloat16(array)  # type: ignore[arg-type]
    return array.astype(np.float32, copy=False)


@functools.lru_cache(1024)
def image_shapes(shape: tuple[int, int, int]) -> list[tuple[int, ...]]:
    """Accepted shapes of one image: [C, H, W], [C*H*W] and, for grey images, [H, W]."""
    channels, height, width = shape
    accepted: list[tuple[int, ...]] = [shape]
    if channels == 1:
        accepted.append((height, width))
    return [*accepted, (channels * height * width,)]


def latent_shapes(shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Accepted shapes of one latent: as it is, and flattened."""
    flat = (math.prod(shape),)
    return [shape] if shape == flat else [shape, flat]


def _array(
    tensor: tensor_pb2.Tensor, sizes: tuple[int, ...], field: str, max_rows: int
) -> NDArray[np.generic]:
    dtype = _DTYPES.get(tensor.dtype)
    if dtype is None:
        raise InvalidArgument(
            f"{field}.dtype", tensor.dtype or "none", "FLOAT32, FLOAT16, BFLOAT16 or UINT8"
        )
    rows = sizes[0]
    if not 1 <= rows <= max_rows:
        raise InvalidArgument(f"{field}.shape", f"{rows} rows", f"1 to {max_rows}")
    wanted = math.prod(sizes) * dtype.itemsize
    data = tensor.data  # each access makes a copy
    if len(data) != wanted:
        raise InvalidArgument(
            f"{field}.data",
            f"{len(data)} bytes",
            f"{wanted} for {_name(tensor.dtype)} {list(sizes)}",
        )
    return np.frombuffer(data, dtype).reshape(sizes)
