"""Parameters of requests: each is a field of this project's own request for the operation."""

import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from google.protobuf.descriptor import FieldDescriptor

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from service.api.fields import INTEGERS
from service.errors import InvalidArgument

#: Value of a parameter. Numbers may be given as text.
Value = bool | int | float | str

#: Parameter of the time that a call may take, in microseconds; 0 for no limit.
TIMEOUT: Final = "timeout"
# Other parameters. Each sets the field of its name, `label` one for all rows, where the operation's
# request has the field.
_NAMES: Final = (
    "count",
    "draw",
    "draws",
    "format",
    "height",
    "label",
    "latent_dtype",
    "offset",
    "scaled",
    "seed",
    "temperature",
    "truncation",
    "unclipped",
    "width",
)
_INT = re.compile(r"[+-]?[0-9]{1,20}")
# Names of the values of `format` and `latent_dtype`; pictures in files are no tensors.
_FORMATS: Final = {
    name: pb.ImageFormat.Value(f"IMAGE_FORMAT_{name.upper()}")
    for name in ("float32", "uint8", "float16", "bfloat16")
}
_LATENT_DTYPES: Final = {
    name: tensor_pb2.DataType.Value(f"DATA_TYPE_{name.upper()}")
    for name in ("float32", "float16", "bfloat16")
}
_ENUMS: Final = {"format": _FORMATS, "latent_dtype": _LATENT_DTYPES}


def accepted_by(request: Any) -> Mapping[str, FieldDescriptor]:
    """Parameters that an operation has, by name, and the fields that they set.

    Args:
        request: This project's own request for the operation.
    """
    fields = request.DESCRIPTOR.fields_by_name
    found = {name: fields[name] for name in _NAMES if name in fields}
    return found | {"label": fields["labels"]} if "labels" in fields else found


def put(request: Any, field: FieldDescriptor, value: Value, where: str) -> None:
    """Sets a field of a request.

    Args:
        request: This project's own request.
        field: The field; of a repeated one, `value` is the only element.
        value: The value, not validated.
        where: Path of the parameter or input, for errors.

    Raises:
        InvalidArgument: The value has a wrong type or is out of the field's range.
    """
    converted: Any
    if field.name in _ENUMS:
        names = _ENUMS[field.name]
        converted = names.get(value.lower()) if isinstance(value, str) else None
        if converted is None:
            raise InvalidArgument(where, repr(value), f"one of {', '.join(names)}")
    elif field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        converted = truth(value, where)
    elif field.cpp_type in INTEGERS:
        converted = whole(value, where, *INTEGERS[field.cpp_type])
    else:
        converted = _real(value, where)
    if field.is_repeated:
        getattr(request, field.name).append(converted)
    else:
        setattr(request, field.name, converted)


def truth(value: Value, where: str) -> bool:
    """Reads a truth value, which may be the text `true` or `false`.

    Raises:
        InvalidArgument: It is none.
    """
    named = {"true": True, "false": False}
    converted = named.get(value.lower()) if isinstance(value, str) else value
    if not isinstance(converted, bool):
        raise InvalidArgument(where, repr(value), "true or false")
    return converted


def whole(value: Value, where: str, low: int, high: int) -> int:
    """Reads a whole number, which may be given as text.

    Raises:
        InvalidArgument: It is none, or not in [low, high].
    """
    number: Value = value
    if isinstance(value, str) and _INT.fullmatch(value):
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not low <= number <= high:
        raise InvalidArgument(where, repr(value), f"a whole number from {low} to {high}")
    return number


def _real(value: Value, where: str) -> float:
    convert: Callable[[Any], float] = float
    try:
        if not isinstance(value, bool):
            return convert(value)
    except ValueError:
        pass
    raise InvalidArgument(where, repr(value), "a number")
