"""Query parameters of a remote VAE."""

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, TypeVar

from latentserve.v1 import tensor_pb2
from service.errors import InvalidArgument

T = TypeVar("T")

_FLOATS: Final = {
    "float16": tensor_pb2.DATA_TYPE_FLOAT16,
    "bfloat16": tensor_pb2.DATA_TYPE_BFLOAT16,
    "float32": tensor_pb2.DATA_TYPE_FLOAT32,
}
#: Names of the dtypes of latents.
LATENT_DTYPES: Final[Mapping[str, tensor_pb2.DataType]] = _FLOATS
#: Names of the dtypes of images.
IMAGE_DTYPES: Final[Mapping[str, tensor_pb2.DataType]] = {
    **_FLOATS,
    "uint8": tensor_pb2.DATA_TYPE_UINT8,
}
#: Names of all dtypes.
NAMES: Final = {dtype: name for name, dtype in IMAGE_DTYPES.items()}
_ITEM_BYTES: Final = {"float16": 2, "bfloat16": 2, "float32": 4, "uint8": 1}
# Python writes True, JSON and people true.
_FLAGS: Final = {"true": True, "1": True, "false": False, "0": False}
_MOST_AXES: Final = 8
_MOST_DIGITS: Final = 9


class Query:
    """The parameters of one query.

    Args:
        items: Names and values, in the order of the query.
        known: Names of the parameters that there are.
        repeated: Those that may be given several times.

    Raises:
        InvalidArgument: A parameter is unknown, or is given twice.
    """

    def __init__(
        self, items: Iterable[tuple[str, str]], known: Collection[str], repeated: Collection[str]
    ):
        self._items: dict[str, list[str]] = {}
        for name, text in items:
            if name not in known:
                wanted = f"one of {', '.join(sorted(known))}: no such name"
                raise InvalidArgument(name or "query", text, wanted)
            self._items.setdefault(name, []).append(text)
        for name, texts in self._items.items():
            if len(texts) > 1 and name not in repeated:
                raise InvalidArgument(name, f"{len(texts)} values", "1")

    def __contains__(self, name: str) -> bool:
        """Whether a parameter is given."""
        return name in self._items

    def pairs(self, names: Collection[str]) -> list[tuple[str, str]]:
        """Those of some parameters that are given, and their values."""
        return [(name, text) for name in names for text in self._items.get(name, ())]

    def flag(self, name: str) -> bool | None:
        """A truth value; None if it is not given."""
        return self._value(name, lambda text: _FLAGS[text.lower()], "True or False")

    def number(self, name: str, *, least: float = -math.inf) -> float | None:
        """A finite number above `least`; None if it is not given."""

        def number(text: str) -> float:
            value = float(text)
            if not (math.isfinite(value) and value > least):
                raise ValueError
            return value

        above = "" if least == -math.inf else f" above {least:g}"
        return self._value(name, number, f"a finite number{above}")

    def count(self, name: str) -> int | None:
        """An integer, at least 1; None if it is not given."""
        return self._value(name, _count, "an integer, at least 1")

    def choice(self, name: str, names: Iterable[str], default: str = "") -> str:
        """One of some names.

        Args:
            name: Name of the parameter.
            names: Its values.
            default: The value if it is not given; empty if it has to be.
        """
        values = {value: value for value in names}
        wanted = " or ".join(values) if len(values) < 3 else f"one of {', '.join(values)}"
        chosen = self._value(name, values.__getitem__, wanted) or default
        if not chosen:
            raise InvalidArgument(name, "none", wanted)
        return chosen

    def shape(self) -> tuple[int, ...]:
        """The parameter `shape`, given once for each axis, or with commas between them."""
        texts = [text for given in self._items.get("shape", ()) for text in given.split(",")]
        try:
            sizes = tuple(map(_count, texts))
        except ValueError:
            sizes = ()
        if not 1 <= len(sizes) <= _MOST_AXES:
            raise InvalidArgument("shape", ", ".join(texts) or "none", "the size of each axis")
        return sizes

    def _value(self, name: str, read: Callable[[str], T], wanted: str) -> T | None:
        if name not in self:
            return None
        (text,) = self._items[name]
        try:
            return read(text)
        except (ValueError, KeyError):
            raise InvalidArgument(name, text, wanted) from None


def put_body(
    tensor: tensor_pb2.Tensor,
    query: Query,
    body: bytes,
    dtypes: Mapping[str, tensor_pb2.DataType],
) -> None:
    """Fills an empty tensor with a body, by the parameters `shape` and `dtype`.

    Args:
        tensor: The message to fill.
        query: The parameters.
        body: The elements in C order, little-endian.
        dtypes: The dtypes that it may have, by name.

    Raises:
        InvalidArgument: A parameter is absent or invalid, or the body has another length.
    """
    shape, dtype = query.shape(), query.choice("dtype", dtypes)
    wanted = math.prod(shape) * _ITEM_BYTES[dtype]
    if len(body) != wanted:
        got = f"{len(body)} bytes"
        raise InvalidArgument("body", got, f"{wanted} for {dtype} {list(shape)}")
    tensor.dtype = dtypes[dtype]
    tensor.shape.extend(shape)
    tensor.data = body


def _count(text: str) -> int:
    # int() takes more than digits.
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text)):
        raise ValueError
    return int(text)
