"""Arrays of messages as numpy arrays, as npy and npz files, and as nested lists."""

import io
import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import tensor_pb2
from service.api.bfloat16 import from_bfloat16
from service.errors import InvalidArgument

Array = NDArray[Any]

#: Maximum bytes of an array as nested lists of JSON; above, npy is many times quicker to read.
MAX_LISTED_BYTES: Final = 64 * 1024
#: Maximum values of one, which is read as float32.
MAX_LISTED_VALUES: Final = MAX_LISTED_BYTES // 4

_HINT: Final = "or a body of application/x-npy"
_DTYPES: Final[Mapping[int, np.dtype[Any]]] = {
    tensor_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
    tensor_pb2.DATA_TYPE_FLOAT16: np.dtype("<f2"),
    tensor_pb2.DATA_TYPE_BFLOAT16: np.dtype("<u2"),
    tensor_pb2.DATA_TYPE_UINT8: np.dtype("u1"),
}
_NPY_DTYPES: Final = "uint8, float16, float32 or float64"
_MOST_AXES: Final = 8


def array_of(tensor: tensor_pb2.Tensor) -> Array:
    """The array of a reply's tensor; bfloat16, which numpy does not have, becomes float32."""
    array = np.frombuffer(tensor.data, _DTYPES[tensor.dtype]).reshape(tuple(tensor.shape))
    return from_bfloat16(array) if tensor.dtype == tensor_pb2.DATA_TYPE_BFLOAT16 else array


def put_array(tensor: tensor_pb2.Tensor, array: Array) -> None:
    """Fills an empty tensor with an array: uint8, float16 or float32, else as float32."""
    dtype = {1: tensor_pb2.DATA_TYPE_UINT8, 2: tensor_pb2.DATA_TYPE_FLOAT16}.get(
        array.dtype.itemsize, tensor_pb2.DATA_TYPE_FLOAT32
    )
    tensor.dtype = dtype
    tensor.shape.extend(array.shape)
    tensor.data = np.ascontiguousarray(array, _DTYPES[dtype]).tobytes()


def to_npy(array: Array) -> bytes:
    """The content of an npy file."""
    return npy_head(array.dtype, array.shape) + np.ascontiguousarray(array).tobytes()


def npy_head(dtype: "np.dtype[Any]", shape: tuple[int, ...]) -> bytes:
    """The head of an npy file (version 1.0), which its elements follow."""
    head = io.BytesIO()
    fields = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(head, fields)
    return head.getvalue()


def to_npz(arrays: Mapping[str, Array]) -> bytes:
    """The content of an npz file."""
    content = io.BytesIO()
    np.savez(content, **dict(arrays))  # type: ignore[arg-type] # no array is `allow_pickle`
    return content.getvalue()


def from_npy(raw: bytes, field: str) -> Array:
    """Reads an npy file.

    Args:
        raw: Content of the file.
        field: Field of the request that it is for, for errors.

    Raises:
        InvalidArgument: It is no npy file, or truncated, or its dtype is none of uint8, float16,
            float32 and float64.
    """
    stream = io.BytesIO(raw)
    dtype, shape, fortran = read_head(stream, field)
    wanted = math.prod(shape) * dtype.itemsize
    if len(raw) - stream.tell() != wanted:
        got = f"{len(raw) - stream.tell()} bytes after the head"
        raise InvalidArgument(field, got, f"{wanted} for {dtype.name} {list(shape)}")
    array = np.frombuffer(raw, dtype, offset=stream.tell())
    return array.reshape(shape, order="F" if fortran else "C")


def read_head(stream: io.BytesIO, field: str) -> tuple["np.dtype[Any]", tuple[int, ...], bool]:
    """Reads the head of an npy file: dtype, shape, and whether it is in Fortran order.

    Raises:
        InvalidArgument: As for `from_npy`.
    """
    try:
        version = np.lib.format.read_magic(stream)
        read = {
            (1, 0): np.lib.format.read_array_header_1_0,
            (2, 0): np.lib.format.read_array_header_2_0,
        }[version]
        shape, fortran, dtype = read(stream)
    except Exception as error:  # numpy parses the head as Python, and raises what that raises
        raise InvalidArgument(field, "a body that is no npy file", "one of numpy.save") from error
    if dtype.kind not in "fu" or dtype.itemsize > 8 or (dtype.kind == "u" and dtype.itemsize > 1):
        raise InvalidArgument(field, f"npy of dtype {dtype}", _NPY_DTYPES)
    if len(shape) > _MOST_AXES or any(size < 1 for size in shape):
        raise InvalidArgument(field, f"npy of shape {list(shape)}", "rows of images or latents")
    return dtype, shape, fortran


def to_lists(array: Array, name: str) -> list[Any]:
    """An array as nested lists.

    Raises:
        InvalidArgument: It is too large for JSON.
    """
    _refuse_large(array.nbytes, name, "or accept: application/x-npy")
    if array.dtype.kind == "f":
        # As few digits as tell a float32 (or float16) from its neighbours.
        digits = [float(text) for text in array.ravel().astype(str)]
        array = np.array(digits).reshape(array.shape)
    listed: list[Any] = array.tolist()
    return listed


def from_lists(value: list[Any], field: str) -> NDArray[np.float32]:
    """Reads nested lists of numbers.

    Raises:
        InvalidArgument: They are ragged, hold something else than numbers, or are too large.
    """
    try:
        array = np.asarray(value, np.float32)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        wanted = f"nested lists of numbers, {_HINT}"
        raise InvalidArgument(field, value, wanted) from error
    if array.ndim > _MOST_AXES or array.size == 0:
        raise InvalidArgument(field, f"shape {list(array.shape)}", "rows of images or latents")
    _refuse_large(array.nbytes, field, _HINT)
    return array


def _refuse_large(size: int, field: str, hint: str) -> None:
    if size > MAX_LISTED_BYTES:
        got = f"an array of {size} bytes as lists"
        raise InvalidArgument(field, got, f"at most {MAX_LISTED_BYTES}, {hint}")
