"""Reads the query of a remote VAE, and the body that it describes."""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final, TypeVar

from latentserve.v1 import tensor_pb2
from service.errors import InvalidArgument
from service.gateway.diffusers.parameters import IMAGE_DTYPES, REPEATED_FIELDS, SHAPE, Parameter

T = TypeVar("T")

#: Names of all dtypes.
NAMES: Final = {dtype: name for name, dtype in IMAGE_DTYPES.items()}
_ITEM_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1}


class Query:
    """The parameters of one query.

    Args:
        items: Names and values, in the order of the query.
        own: The parameters that there are.
        fields: Names of those that are fields of a message; `pairs` returns them.

    Raises:
        InvalidArgument: A parameter is unknown, or is given twice.
    """

    def __init__(
        self,
        items: Iterable[tuple[str, str]],
        own: Collection[Parameter[Any]],
        fields: Collection[str],
    ):
        known = {parameter.name for parameter in own} | set(fields)
        repeated = {parameter.name for parameter in own if parameter.repeated}
        self._items: dict[str, list[str]] = {}
        for name, text in items:
            if name not in known:
                wanted = f"one of {', '.join(sorted(known))}: no such name"
                raise InvalidArgument(name or "query", text, wanted)
            self._items.setdefault(name, []).append(text)
        for name, texts in self._items.items():
            if len(texts) > 1 and name not in repeated and name not in REPEATED_FIELDS:
                raise InvalidArgument(name, f"{len(texts)} values", "1")

    def pairs(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Those of some parameters that are given, and their values."""
        return [(name, text) for name in names for text in self._items.get(name, ())]

    def get(self, parameter: Parameter[T]) -> T | None:
        """The value of a parameter; None if it is not given.

        Raises:
            InvalidArgument: It has a value that it may not have.
        """
        if parameter.name not in self._items:
            return None
        text = ",".join(self._items[parameter.name])
        try:
            return parameter.read(text)
        except (ValueError, KeyError):
            raise InvalidArgument(parameter.name, text, parameter.wanted) from None

    def need(self, parameter: Parameter[T]) -> T:
        """The value of a parameter that has to be given.

        Raises:
            InvalidArgument: It is not given, or has a value that it may not have.
        """
        value = self.get(parameter)
        if value is None:
            raise InvalidArgument(parameter.name, "none", parameter.wanted)
        return value


def put_body(
    tensor: tensor_pb2.Tensor,
    query: Query,
    body: bytes,
    dtype: Parameter[str],
    dtypes: Mapping[str, tensor_pb2.DataType],
) -> None:
    """Fills an empty tensor with a body, by the parameters `shape` and `dtype`.

    Args:
        tensor: The message to fill.
        query: The parameters.
        body: The elements in C order, little-endian.
        dtype: The parameter `dtype`.
        dtypes: Its values.

    Raises:
        InvalidArgument: A parameter is absent or invalid, or the body has another length.
    """
    shape, name = query.need(SHAPE), query.need(dtype)
    wanted = math.prod(shape) * _ITEM_BYTES[name]
    if len(body) != wanted:
        raise InvalidArgument("body", f"{len(body)} bytes", f"{wanted} for {name} {list(shape)}")
    tensor.dtype = dtypes[name]
    tensor.shape.extend(shape)
    tensor.data = body
