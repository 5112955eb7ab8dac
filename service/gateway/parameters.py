"""Query parameters, and text fields of a form, as fields of a request."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from service.api.fields import INTEGERS
from service.errors import InvalidArgument

#: Names and values, in the order of the query.
Parameters = Sequence[tuple[str, str]]

_FLOATS: Final = (FieldDescriptor.CPPTYPE_FLOAT, FieldDescriptor.CPPTYPE_DOUBLE)
_BOOLEANS: Final = {"true": True, "1": True, "": True, "false": False, "0": False}


def fill(message: Message, parameters: Parameters) -> None:
    """Sets fields of a message from parameters.

    A parameter has the name of its field, in snake_case or camelCase. Values of a repeated field
    are separated by commas, or the parameter is repeated. Values of an enumeration are written
    without their prefix, in any case, as in `format=png`. `label` stands for one of `labels`.

    Args:
        message: Message to fill; its messages (tensors, images) have no parameters.
        parameters: The parameters.

    Raises:
        InvalidArgument: A parameter is unknown, is given twice, or has an invalid value.
    """
    seen = set()
    fields = {name: field for field in scalars(message) for name in (field.name, field.json_name)}
    if "labels" in fields and "label" not in fields:
        fields["label"] = fields["labels"]
    for name, text in parameters:
        field = fields.get(name)
        if field is None:
            names = sorted({field.name for field in fields.values()})
            raise InvalidArgument(name or "query", text, f"one of {', '.join(names)}: no such name")
        if field.is_repeated:
            values = getattr(message, field.name)
            values.extend(_value(field, part) for part in text.split(","))
            continue
        if field.name in seen:
            raise InvalidArgument(name, "2 values", "1")
        seen.add(field.name)
        setattr(message, field.name, _value(field, text))


def scalars(message: Message) -> Iterable[Any]:
    """Fields of a message that are no messages themselves: those that have a parameter."""
    return [
        field
        for field in message.DESCRIPTOR.fields
        if field.cpp_type not in (FieldDescriptor.CPPTYPE_MESSAGE, FieldDescriptor.CPPTYPE_STRING)
    ]


def enum_value(field: FieldDescriptor, text: str, path: str) -> int:
    """The number of a value of an enumeration, by its name with or without prefix, in any case.

    Args:
        field: Field of the enumeration.
        text: Name of the value.
        path: Path of the field in the request, for errors.

    Raises:
        InvalidArgument: There is no such value.
    """
    assert field.enum_type is not None
    names = short_names(field.enum_type)
    number_of = {**names, **{value.name.lower(): value.number for value in field.enum_type.values}}
    if text.lower() not in number_of:
        wanted = ", ".join(name for name in names if name != "unspecified")
        raise InvalidArgument(path, text, f"one of {wanted}")
    return number_of[text.lower()]


def short_names(enum: EnumDescriptor) -> dict[str, int]:
    """Values of an enumeration by their names without prefix, in lower case, as in `png`."""
    # IMAGE_FORMAT_UNSPECIFIED is the value 0 of every enumeration.
    prefix = enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return {value.name.removeprefix(prefix).lower(): value.number for value in enum.values}


def _value(field: FieldDescriptor, text: str) -> Any:
    text = text.strip()
    if field.cpp_type in INTEGERS:
        low, high = INTEGERS[field.cpp_type]
        return integer(field.name, text, low, high)
    if field.cpp_type in _FLOATS:
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise InvalidArgument(field.name, text, "a number")
        return number
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if text.lower() not in _BOOLEANS:
            raise InvalidArgument(field.name, text, "true or false")
        return _BOOLEANS[text.lower()]
    return enum_value(field, text, field.name)


def integer(name: str, text: str, low: int, high: int) -> int:
    """Reads an integer from `low` to `high`.

    Raises:
        InvalidArgument: The text is none.
    """
    # int() takes more than digits, and time quadratic in their number.
    if len(text) <= 20 and text.removeprefix("-").isascii() and text.removeprefix("-").isdigit():
        number = int(text)
        if low <= number <= high:
            return number
    raise InvalidArgument(name, text, f"an integer, {low} to {high}")
