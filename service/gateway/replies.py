"""Replies for HTTP: messages as JSON, npy, npz and pictures."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from google.protobuf import json_format
from google.protobuf.message import Message

from latentserve.v1 import tensor_pb2
from service.api import sheets
from service.errors import InvalidArgument
from service.gateway import arrays
from service.gateway.arrays import Array
from service.gateway.media import JSON, MULTIPART, NPY, NPZ, PICTURES
from service.gateway.operations import Operation
from service.gateway.parameters import integer

_LISTS, _BASE64 = "lists", "base64"
#: How JSON can hold arrays.
TENSORS: Final = (_LISTS, _BASE64)
#: Maximum pictures in a row of a sheet.
MOST_COLUMNS: Final = 4096
#: Maximum enlargement of a sheet.
MOST_ZOOM: Final = 32


@dataclass(frozen=True)
class Wanted:
    """How a reply is written.

    Attributes:
        media: Media type of the reply.
        output: Name of the only array that an npy reply holds; empty for the operation's first.
        tensors: How JSON holds arrays: as nested `lists`, or as protobuf's mapping does, in
            `base64`.
        columns: Pictures in a row of a sheet; 0 for a nearly square one.
        zoom: Enlargement of a sheet.
        quality: Quality of a JPEG or WebP sheet, 1 to 100.
    """

    media: str
    output: str = ""
    tensors: str = _LISTS
    columns: int = 0
    zoom: int = 1
    quality: int = sheets.QUALITY


#: Parameters that say how a reply is written, and are no fields of a request.
PARAMETERS: Final = ("output", "tensors", "columns", "zoom")


def offers(operation: Operation, media: str, *, body: bool) -> list[str]:
    """Media types of an operation's replies, the one for callers without a preference first.

    What comes as pictures goes as pictures, an array as an array, and JSON as JSON; a GET of
    pictures is for those who look at them.

    Args:
        operation: The operation.
        media: Media type of the request's body.
        body: Whether the request has a body.
    """
    every = [*PICTURES, JSON, NPY, NPZ] if operation.pictured else [JSON, NPY, NPZ]
    first = JSON
    if media == NPY:
        first = NPY
    elif operation.pictured and (not body or media in PICTURES or media == MULTIPART):
        first = media if media in PICTURES else next(iter(PICTURES))
    return [first, *(offer for offer in every if offer != first)]


def wanted_of(operation: Operation, media: str, given: dict[str, str]) -> Wanted:
    """Reads the parameters that say how a reply is written.

    Args:
        operation: The operation.
        media: Media type of the reply.
        given: Those of `PARAMETERS` that are given.

    Raises:
        InvalidArgument: One of them is invalid.
    """
    output = given.get("output", "")
    if output and output not in operation.arrays:
        raise InvalidArgument("output", output, f"one of {', '.join(operation.arrays)}")
    tensors = given.get("tensors", _LISTS)
    if tensors not in TENSORS:
        raise InvalidArgument("tensors", tensors, " or ".join(TENSORS))
    return Wanted(
        media,
        output,
        tensors,
        integer("columns", given["columns"], 1, MOST_COLUMNS) if "columns" in given else 0,
        integer("zoom", given["zoom"], 1, MOST_ZOOM) if "zoom" in given else 1,
    )


def written(
    reply: Message, operation: Operation, wanted: Wanted, columns: int
) -> tuple[bytes, str]:
    """Writes a reply.

    Args:
        reply: The reply of the call.
        operation: The operation.
        wanted: How it is written.
        columns: Pictures in a row of a sheet, unless `wanted` says so; 0 for a nearly square one.

    Returns:
        The content, and its media type.

    Raises:
        InvalidArgument: It cannot be written like that: an array is too large for JSON, or there
            is no array of the name that is wanted.
    """
    if wanted.media == JSON:
        return to_json(reply, wanted.tensors == _LISTS), JSON
    if wanted.media in PICTURES:
        sheet = sheets.encode(
            _images_of(reply), PICTURES[wanted.media], wanted.columns or columns, wanted.zoom,
            wanted.quality,
        )  # fmt: skip
        return sheet, wanted.media
    found = arrays_of(reply, operation)
    if wanted.output or (wanted.media == NPY and operation.pictured):
        name = wanted.output or operation.arrays[0]
        if name not in found:
            raise InvalidArgument("output", name, f"one of {', '.join(found)}")
        return arrays.to_npy(found[name]), NPY
    return arrays.to_npz(found), NPZ


def to_json(message: Message, lists: bool = True) -> bytes:
    """A message by protobuf's JSON mapping, with nested lists for arrays if `lists`.

    Raises:
        InvalidArgument: An array is too large for lists.
    """
    return json.dumps(_object(message, lists)).encode()


def arrays_of(reply: Message, operation: Operation) -> dict[str, Array]:
    """The arrays of a reply that are set, by name."""
    found = {}
    for name in operation.arrays:
        if not reply.HasField(name):
            continue
        value = getattr(reply, name)
        found[name] = _images_of(reply) if name == "images" else arrays.array_of(value)
    return found


def _images_of(reply: Any) -> Array:
    if not reply.images.HasField("tensor"):
        raise InvalidArgument("format", "files", "an array, which npy and sheets are made of")
    return arrays.array_of(reply.images.tensor)


def _object(message: Message, lists: bool) -> dict[str, Any]:
    if not lists:
        mapped: dict[str, Any] = json_format.MessageToDict(message)
        return mapped
    plain = type(message)()
    plain.CopyFrom(message)
    listed: dict[str, Any] = {}
    for field, value in message.ListFields():
        tensor = value.tensor if isinstance(value, tensor_pb2.Images) else value
        if isinstance(tensor, tensor_pb2.Tensor) and tensor.dtype:
            listed[field.json_name] = _listed(tensor, field.name)
            plain.ClearField(field.name)
    return {**listed, **json_format.MessageToDict(plain)}


def _listed(tensor: tensor_pb2.Tensor, name: str) -> Sequence[Any]:
    array = arrays.array_of(tensor)
    # JSON has neither NaN nor infinities; protobuf's mapping writes them as text.
    listed = arrays.to_lists(array, name)
    return listed if array.dtype == np.uint8 or np.isfinite(array).all() else _finite(listed)


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if value != value:
        return "NaN"
    if value in (float("inf"), float("-inf")):
        return "Infinity" if value > 0 else "-Infinity"
    return value
