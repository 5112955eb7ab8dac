"""Requests from HTTP: JSON, npy, pictures and forms as messages."""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

import python_multipart
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from python_multipart.exceptions import FormParserError

from latentserve.v1 import tensor_pb2
from service.errors import InvalidArgument, TooLarge
from service.gateway import arrays
from service.gateway.arrays import Array
from service.gateway.errors import WrongMedia
from service.gateway.json_bodies import parse_json
from service.gateway.media import JSON, MULTIPART, NPY, PICTURES, MediaType
from service.gateway.operations import Operation
from service.gateway.parameters import Parameters, enum_value, fill

#: Maximum bytes of a body of JSON, which is parsed in one go.
MAX_JSON_BYTES: Final = 8 * 2**20
# Maximum number of fields and parts that do not belong to a row; no request has so many.
_MOST_OTHERS: Final = 64
# Text of a form for each row: its classes, which have 11 characters at most, and commas.
_TEXT_BYTES: Final = 32
# Maximum bytes of a header of a part, which may have the longest name that a file can have. What
# its parsing costs grows with the square of them.
_HEADER_BYTES: Final = 1024

_FAILED: Final = re.compile(r"Failed to parse (\w+) field: (.*)", re.DOTALL)
_UNKNOWN: Final = re.compile(r'has no field named "([^"]*)"')
_NAMES: Final = re.compile(r"'(\w+)'")
# Of EncodedImages, for pictures in a body or a form.
_OF_PICTURES: Final = ("resize", "height", "width")
# Largest integer that every reader of JSON keeps.
_EXACT: Final = 2**53


def read(
    message: Message,
    operation: Operation,
    parameters: Parameters,
    media: MediaType,
    body: bytes,
    max_rows: int,
) -> None:
    """Fills an empty request from query and body.

    Args:
        message: The request.
        operation: The operation that it is for.
        parameters: Parameters of the query.
        media: Media type of the body, one that the operation takes.
        body: The body.
        max_rows: Maximum rows of a request, which limits how much of anything there can be.

    Raises:
        InvalidArgument: A parameter, or something in the body, is invalid.
        TooLarge: It is JSON above `MAX_JSON_BYTES`.
    """
    parameters = [(operation.aliases.get(name, name), text) for name, text in parameters]
    if not body and not (operation.pictures and media.name in PICTURES):
        fill(message, parameters)
        return
    if media.name == JSON:
        fill(message, parameters)
        _merge(message, _parsed(body, operation, max_rows), max_rows)
    elif media.name == NPY:
        fill(message, parameters)
        put_array(message, operation.array, arrays.from_npy(body, operation.array))
    else:
        files = [body]
        if media.name == MULTIPART:
            more, files = _form(media, body, max_rows)
            parameters += [(operation.aliases.get(name, name), text) for name, text in more]
            if not files:
                raise InvalidArgument("body", "a form without files", "one picture or more")
        _put_pictures(message, operation, parameters, files)


def put_array(message: Message, field: str, array: Array) -> None:
    """Fills a field of a request, images or latents, with an array."""
    value = getattr(message, field)
    arrays.put_array(value.tensor if isinstance(value, tensor_pb2.Images) else value, array)


def refuse_other(media: MediaType, operation: Operation) -> None:
    """Refuses a body of a media type that an operation does not take.

    Raises:
        WrongMedia: It does not.
    """
    if media.name not in taken(operation):
        raise WrongMedia(media.name, ", ".join(taken(operation)))


def taken(operation: Operation) -> list[str]:
    """Media types that an operation takes."""
    npy = [NPY] if operation.array else []
    pictures = [*PICTURES, MULTIPART] if operation.pictures else []
    return [JSON, *npy, *pictures]


def _put_pictures(
    message: Message, operation: Operation, parameters: Parameters, files: Sequence[bytes]
) -> None:
    encoded = getattr(message, operation.pictures).encoded
    encoded.files.extend(files)
    own = {name for name in _OF_PICTURES if name not in message.DESCRIPTOR.fields_by_name}
    fill(encoded, [pair for pair in parameters if pair[0] in own])
    fill(message, [pair for pair in parameters if pair[0] not in own])


def _form(
    media: MediaType, body: bytes, max_rows: int
) -> tuple[list[tuple[str, str]], list[bytes]]:
    """Reads multipart/form-data: its text fields, and the content of its files, in order."""
    fields: list[tuple[str, str]] = []
    files: list[bytes] = []

    def on_field(part: Any) -> None:
        name, value = (part.field_name or b""), (part.value or b"")
        fields.append((name.decode("utf-8", "replace"), value.decode("utf-8", "replace")))

    def on_file(part: Any) -> None:
        part.file_object.seek(0)
        files.append(part.file_object.read())

    boundary = media.parameters.get("boundary", "")
    if not boundary:
        raise InvalidArgument("content-type", "no boundary", "multipart/form-data; boundary=...")
    delimiter = boundary.encode("latin-1", "replace")
    # A picture and a class for each row. Counted before the form is parsed, part by part in Python.
    parts, most = body.count(b"\r\n--" + delimiter), 2 * max_rows + _MOST_OTHERS
    if parts > most:
        raise InvalidArgument("body", f"a form of {parts} parts", f"at most {most}")
    try:
        parser = python_multipart.FormParser(
            MULTIPART, on_field, on_file, boundary=delimiter,
            # Never into a temporary file.
            config={"MAX_MEMORY_FILE_SIZE": len(body) + 1, "MAX_HEADER_SIZE": _HEADER_BYTES},
        )  # fmt: skip
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise InvalidArgument("body", f"a form that cannot be read ({error})", MULTIPART) from error
    text, most = sum(len(value) for _, value in fields), _TEXT_BYTES * (max_rows + _MOST_OTHERS)
    if text > most:
        raise InvalidArgument("body", f"{text} characters in fields of a form", f"at most {most}")
    return fields, files


def _parsed(body: bytes, operation: Operation, max_rows: int) -> dict[str, Any]:
    if len(body) > MAX_JSON_BYTES:
        raise TooLarge(
            f"body: {len(body)} bytes of JSON, wanted at most {MAX_JSON_BYTES}, or an array as "
            f"{NPY}"
        )
    # Two arrays as lists, and for each row a file and two classes.
    most = 2 * arrays.MAX_LISTED_VALUES + 3 * max_rows + _MOST_OTHERS
    value = parse_json(body, most, f", or an array as {NPY}")
    if not isinstance(value, dict):
        raise InvalidArgument("body", json.dumps(value), "an object")
    return {operation.aliases.get(name, name): content for name, content in value.items()}


def _merge(message: Message, value: dict[str, Any], max_rows: int) -> None:
    """Adds JSON to a message, by protobuf's mapping and with nested lists for arrays."""
    try:
        # A copy of its own: protobuf empties a message that it cannot fill.
        added = type(message)()
        json_format.ParseDict(_mapped(value, message.DESCRIPTOR, "", max_rows), added)
    except json_format.ParseError as error:
        raise _invalid(str(error), value) from error
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidArgument("body", f"JSON that is no request ({error})", "its fields") from error
    message.MergeFrom(added)


def _mapped(value: dict[str, Any], descriptor: Any, path: str, max_rows: int) -> dict[str, Any]:
    """Replaces what protobuf's mapping does not have: nested lists, short names of values."""
    fields = {name: field for field in descriptor.fields for name in (field.name, field.json_name)}
    return {
        name: _mapped_field(content, fields[name], f"{path}{name}", max_rows)
        if name in fields
        else content
        for name, content in value.items()
    }


def _mapped_field(value: Any, field: FieldDescriptor, path: str, max_rows: int) -> Any:
    most = max(max_rows, _MOST_OTHERS)
    if field.is_repeated and isinstance(value, list) and len(value) > most:
        raise InvalidArgument(path, f"{len(value)} elements", f"at most {most}")
    if field.cpp_type == FieldDescriptor.CPPTYPE_ENUM and isinstance(value, str):
        return enum_value(field, value, path)
    if field.cpp_type in (FieldDescriptor.CPPTYPE_UINT64, FieldDescriptor.CPPTYPE_INT64):
        if isinstance(value, int | float) and abs(value) > _EXACT:
            raise InvalidArgument(path, value, "a string: JSON keeps no numbers above 2^53")
        return value
    if field.message_type is None or field.is_repeated:
        return value
    if isinstance(value, list):
        if field.message_type is tensor_pb2.Tensor.DESCRIPTOR:
            return _tensor(value, path)
        if field.message_type is tensor_pb2.Images.DESCRIPTOR:
            return {"tensor": _tensor(value, path)}
    if isinstance(value, dict):
        return _mapped(value, field.message_type, f"{path}.", max_rows)
    return value


def _tensor(value: list[Any], path: str) -> dict[str, Any]:
    tensor = tensor_pb2.Tensor()
    arrays.put_array(tensor, arrays.from_lists(value, path))
    return json_format.MessageToDict(tensor)


def _invalid(text: str, value: dict[str, Any]) -> InvalidArgument:
    unknown = _UNKNOWN.search(text)
    if unknown is not None:
        names = ", ".join(_NAMES.findall(text.partition("Available Fields")[2]))
        return InvalidArgument(unknown[1], "a value", f"one of {names}: no such name")
    failed, path, got = _FAILED.search(text), [], value
    while failed is not None:
        path.append(failed[1])
        got = _within(got, failed[1])
        text, failed = failed[2], _FAILED.search(failed[2])
    return InvalidArgument(".".join(path) or "body", got, f"as protobuf's JSON has it: {text}")


def _within(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        for key in (name, re.sub("_(.)", lambda match: match[1].upper(), name)):
            if key in value:
                return value[key]
    return value
