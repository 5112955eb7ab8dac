"""Tensors of the protocol, and their elements as NumPy reads them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from latentserve.v1 import tensor_pb2
from service.errors import InvalidArgument

FP32: Final = "FP32"
FP16: Final = "FP16"
BF16: Final = "BF16"
UINT8: Final = "UINT8"
INT64: Final = "INT64"
UINT64: Final = "UINT64"

#: Types of images and latents, as this project's own messages number them.
WIRE_DTYPES: Final[Mapping[str, tensor_pb2.DataType]] = {
    FP32: tensor_pb2.DATA_TYPE_FLOAT32,
    FP16: tensor_pb2.DATA_TYPE_FLOAT16,
    BF16: tensor_pb2.DATA_TYPE_BFLOAT16,
    UINT8: tensor_pb2.DATA_TYPE_UINT8,
}
#: The same, the other way round.
DATATYPES: Final = {dtype: datatype for datatype, dtype in WIRE_DTYPES.items()}
#: Types of labels and of whole numbers that are given as inputs.
INTEGERS: Final[Mapping[str, np.dtype[Any]]] = {
    INT64: np.dtype("<i8"),
    "INT32": np.dtype("<i4"),
    UINT64: np.dtype("<u8"),
    "UINT32": np.dtype("<u4"),
}
#: Types of other numbers that are given as inputs.
FLOATS: Final[Mapping[str, np.dtype[Any]]] = {FP32: np.dtype("<f4"), "FP64": np.dtype("<f8")}


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output.

    Attributes:
        name: Its name.
        datatype: Its type, such as FP32.
        shape: Its shape; of an input, not validated.
        data: Its elements, little-endian and in C order; of an input, not validated.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes | memoryview

    @property
    def field(self) -> str:
        """Path of the input in errors."""
        return f"inputs.{self.name}"


def check_datatype(tensor: Tensor, accepted: Mapping[str, object] | tuple[str, ...]) -> None:
    """Checks the type of an input.

    Raises:
        InvalidArgument: It is not one of those accepted.
    """
    if tensor.datatype not in accepted:
        wanted = f"one of {', '.join(accepted)}" if len(accepted) > 1 else next(iter(accepted))
        raise InvalidArgument(f"{tensor.field}.datatype", repr(tensor.datatype), wanted)


def labels_in(tensor: Tensor) -> list[int]:
    """Reads an input of labels, [N] or [N, 1].

    Raises:
        InvalidArgument: Wrong type, shape or byte count.
    """
    shape = tensor.shape
    if len(shape) != 1 and not (len(shape) == 2 and shape[1] == 1):
        raise InvalidArgument(f"{tensor.field}.shape", list(shape), "[N] or [N, 1]")
    check_datatype(tensor, INTEGERS)
    labels: list[int] = _elements(tensor, INTEGERS[tensor.datatype]).tolist()
    return labels


def number_in(tensor: Tensor, accepted: Mapping[str, np.dtype[Any]]) -> int | float:
    """Reads an input of one number, of shape [1] or [1, 1].

    Args:
        tensor: The input.
        accepted: Its possible types.

    Raises:
        InvalidArgument: Wrong type, shape or byte count.
    """
    check_datatype(tensor, accepted)
    if set(tensor.shape) - {1}:
        raise InvalidArgument(f"{tensor.field}.shape", list(tensor.shape), "[1]")
    number: int | float = _elements(tensor, accepted[tensor.datatype]).item()
    return number


def _elements(tensor: Tensor, dtype: np.dtype[Any]) -> NDArray[Any]:
    wanted = math.prod(tensor.shape) * dtype.itemsize
    if min(tensor.shape, default=1) < 0 or len(tensor.data) != wanted:
        raise InvalidArgument(
            f"{tensor.field}.data",
            f"{len(tensor.data)} bytes",
            f"{wanted} for {tensor.datatype} {list(tensor.shape)}",
        )
    return np.frombuffer(tensor.data, dtype)
