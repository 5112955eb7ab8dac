"""Requests of `/v2/models/NAME/infer`, and their replies, as the messages of gRPC.

JSON has the head of a request; elements of its tensors are in it too, or follow it (the binary
tensor data extension): then the header Inference-Header-Content-Length says where the JSON ends.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any, Final

import numpy as np

from service.api.inference import inference_service_pb2 as pb
from service.api.inference.tensors import FLOATS, INTEGERS, UINT8
from service.errors import InvalidArgument, TooLarge
from service.gateway.arrays import MAX_LISTED_BYTES
from service.gateway.bodies import MAX_JSON_BYTES
from service.gateway.json_bodies import parse_json

#: Header that has the length of the JSON before binary elements.
HEAD_LENGTH: Final = "inference-header-content-length"

#: Parameters of the binary tensor data extension: of a tensor whose elements follow the JSON, of an
#: output, and of the whole request.
BINARY_SIZE: Final = "binary_data_size"
BINARY: Final = "binary_data"
ALL_BINARY: Final = "binary_data_output"
#: Members of a request, of its inputs, and of its outputs.
MEMBERS: Final = ("id", "model_name", "model_version", "parameters", "inputs", "outputs")
INPUT_MEMBERS: Final = ("name", "shape", "datatype", "parameters", "data")
OUTPUT_MEMBERS: Final = ("name", "parameters")
#: Maximum inputs, outputs, parameters of one thing, and axes; no model has so many.
MOST: Final = 64
# Maximum values in JSON: elements of two tensors of one byte each, and all the rest.
_MOST_VALUES: Final = 2 * MAX_LISTED_BYTES + 2**15
#: Smallest and largest size of an axis that is read; what makes sense is decided by the call.
SIZES: Final = (-(2**31), 2**40)
#: Types whose elements JSON can hold.
LISTED: Final[Mapping[str, np.dtype[Any]]] = {UINT8: np.dtype("u1"), **INTEGERS, **FLOATS}
_MAX_INT64: Final = 2**63 - 1
_MAX_UINT64: Final = 2**64 - 1


def read(body: bytes, head_length: str, model: str, version: str) -> pb.ModelInferRequest:
    """Reads a request.

    Args:
        body: The body.
        head_length: The header `HEAD_LENGTH`; empty if there is none.
        model: Name of the model, from the path.
        version: Its version; empty for the default.

    Raises:
        InvalidArgument: The body is no request, or elements are missing; the field is named.
        TooLarge: Its JSON is too large.
    """
    head, rest = _parts(body, head_length)
    message = pb.ModelInferRequest(model_name=model, model_version=version)
    _known(head, MEMBERS, "body")
    for name, own in (("model_name", model), ("model_version", version)):
        # kserve's client repeats what the path says.
        if head.get(name, own) not in (own, None):
            raise InvalidArgument(name, head[name], f"none, or that of the path: {own}")
    message.id = _text(head.get("id", ""), "id")
    binary = _put_parameters(message, head.get("parameters", {}), "parameters")
    taken = 0
    for index, given in enumerate(_objects(head.get("inputs", []), "inputs")):
        where = f"inputs[{index}]"
        _known(given, INPUT_MEMBERS, where)
        tensor = message.inputs.add(
            name=_text(given.get("name", ""), f"{where}.name"),
            datatype=_text(given.get("datatype", ""), f"{where}.datatype"),
        )
        tensor.shape.extend(_shape(given.get("shape"), f"{where}.shape"))
        parameters = _object(given.get("parameters", {}), f"{where}.parameters")
        size = parameters.pop(BINARY_SIZE, None)
        _put_parameters(tensor, parameters, f"{where}.parameters")
        if size is None:
            message.raw_input_contents.append(_elements(given, tensor.datatype, where))
            continue
        size = _whole(size, f"{where}.parameters.{BINARY_SIZE}", 0, len(rest))
        if taken + size > len(rest):
            got = f"{size} bytes, {len(rest) - taken} of which are there"
            raise InvalidArgument(
                f"{where}.parameters.{BINARY_SIZE}", got, "as many as the body has"
            )
        message.raw_input_contents.append(bytes(rest[taken : taken + size]))
        taken += size
    if taken != len(rest):
        raise InvalidArgument("body", f"{len(rest)} bytes after the JSON", f"{taken} of the inputs")
    for index, given in enumerate(_objects(head.get("outputs", []), "outputs")):
        where = f"outputs[{index}]"
        _known(given, OUTPUT_MEMBERS, where)
        output = message.outputs.add(name=_text(given.get("name", ""), f"{where}.name"))
        parameters = _object(given.get("parameters", {}), f"{where}.parameters")
        # Where it is not said, the request's own parameter holds.
        wanted = _truth(parameters.pop(BINARY, binary), f"{where}.parameters.{BINARY}")
        _put_parameters(output, parameters, f"{where}.parameters")
        output.parameters[BINARY].bool_param = wanted
    if binary:
        message.parameters[ALL_BINARY].bool_param = True
    return message


def binary_outputs(message: pb.ModelInferRequest) -> tuple[bool, Mapping[str, bool]]:
    """Takes from a request how its outputs are sent, which is no parameter of the call.

    Returns:
        Whether outputs that are not named are sent as bytes, and that of each that is named.
    """
    every = ALL_BINARY in message.parameters
    message.parameters.pop(ALL_BINARY, None)
    named = {output.name: output.parameters[BINARY].bool_param for output in message.outputs}
    for output in message.outputs:
        output.parameters.pop(BINARY, None)
    return every, named


def write(
    reply: pb.ModelInferResponse, every: bool, named: Mapping[str, bool]
) -> tuple[bytes, int | None]:
    """Writes a reply.

    Args:
        reply: The reply, with raw contents.
        every: Whether outputs that are not named in `named` are sent as bytes.
        named: Whether each output is.

    Returns:
        The body, and the length of the JSON at its start; None if it is nothing else.

    Raises:
        InvalidArgument: JSON cannot hold an output: it is too large, or of 16 bits.
    """
    outputs, chunks = [], []
    for tensor, raw in zip(reply.outputs, reply.raw_output_contents, strict=True):
        told: dict[str, Any] = {
            "name": tensor.name,
            "datatype": tensor.datatype,
            "shape": list(tensor.shape),
        }
        if named.get(tensor.name, every):
            told["parameters"] = {BINARY_SIZE: len(raw)}
            chunks.append(raw)
        else:
            told["data"] = _listed(tensor.datatype, raw, tensor.name)
        outputs.append(told)
    head: dict[str, Any] = {
        "model_name": reply.model_name,
        "model_version": reply.model_version,
        "outputs": outputs,
    }
    if reply.id:
        head["id"] = reply.id
    if reply.parameters:
        head["parameters"] = {name: value.string_param for name, value in reply.parameters.items()}
    content = json.dumps(head).encode()
    return b"".join((content, *chunks)), len(content) if chunks else None


def _parts(body: bytes, head_length: str) -> tuple[dict[str, Any], memoryview]:
    length = len(body)
    if head_length:
        if not (head_length.isascii() and head_length.isdigit() and len(head_length) < 12):
            raise InvalidArgument(HEAD_LENGTH, head_length, "the length of the JSON in bytes")
        length = int(head_length)
        if length > len(body):
            raise InvalidArgument(HEAD_LENGTH, length, f"at most {len(body)}, those of the body")
    if length > MAX_JSON_BYTES:
        wanted = f"at most {MAX_JSON_BYTES}, or binary tensor data"
        raise TooLarge(f"body: {length} bytes of JSON, wanted {wanted}")
    head = parse_json(body[:length], _MOST_VALUES, ", or binary tensor data")
    return _object(head, "body"), memoryview(body)[length:]


def _put_parameters(message: Any, given: Any, where: str) -> bool:
    """Sets the parameters of a message; returns the one that says how outputs are sent."""
    parameters = dict(_object(given, where))
    _refuse_many(parameters, where)
    binary = _truth(parameters.pop(ALL_BINARY, False), f"{where}.{ALL_BINARY}")
    for name, value in parameters.items():
        parameter = message.parameters[name]
        if isinstance(value, bool):
            parameter.bool_param = value
        elif isinstance(value, str):
            parameter.string_param = value
        elif isinstance(value, float):
            parameter.double_param = value
        elif isinstance(value, int) and abs(value) <= _MAX_INT64:
            parameter.int64_param = value
        elif isinstance(value, int) and 0 < value <= _MAX_UINT64:
            parameter.uint64_param = value
        else:
            raise InvalidArgument(
                f"{where}.{name}", repr(value), "a number, a text or a truth value"
            )
    return binary


def _elements(given: Mapping[str, Any], datatype: str, where: str) -> bytes:
    """Elements in JSON, flat or nested, as bytes."""
    if "data" not in given:
        raise InvalidArgument(f"{where}.data", "none", f"elements, or parameters.{BINARY_SIZE}")
    dtype = LISTED.get(datatype)
    if dtype is None:
        wanted = ", ".join(LISTED)
        raise InvalidArgument(f"{where}.datatype", repr(datatype), f"{wanted} for data in JSON")
    try:
        # Through float64 or int64, since numpy would wrap numbers that do not fit.
        array = np.asarray(given["data"], np.float64 if dtype.kind == "f" else None)
        fits = dtype.kind == "f" or (
            array.dtype.kind in "iu" and np.array_equal(array, array.astype(dtype))
        )
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"{where}.data", given["data"], f"numbers of {datatype}") from error
    if not fits and array.size:
        raise InvalidArgument(f"{where}.data", given["data"], f"numbers of {datatype}")
    content = array.astype(dtype).tobytes()
    if len(content) > MAX_LISTED_BYTES:
        got = f"{len(content)} bytes in JSON"
        raise InvalidArgument(f"{where}.data", got, f"at most {MAX_LISTED_BYTES}, or binary data")
    return content


def _listed(datatype: str, raw: bytes, name: str) -> list[Any]:
    dtype = LISTED.get(datatype)
    field = f"outputs.{name}"
    if dtype is None:
        raise InvalidArgument(field, f"{datatype} in JSON", f"parameters.{BINARY}: true")
    if len(raw) > MAX_LISTED_BYTES:
        got = f"{len(raw)} bytes in JSON"
        raise InvalidArgument(field, got, f"at most {MAX_LISTED_BYTES}, or {BINARY}: true")
    array = np.frombuffer(raw, dtype)
    if dtype.kind == "f":
        return [float(text) for text in array.astype(str)]
    elements: list[Any] = array.tolist()
    return elements


def _known(given: Mapping[str, Any], names: tuple[str, ...], where: str) -> None:
    for name in given:
        if name not in names:
            raise InvalidArgument(f"{where}.{name}", "a value", f"one of {', '.join(names)}")


def _object(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, dict):
        raise InvalidArgument(where, json.dumps(given), "an object")
    return dict(given)


def _objects(given: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(given, list):
        raise InvalidArgument(where, json.dumps(given), "a list of objects")
    _refuse_many(given, where)
    return [_object(one, f"{where}[{index}]") for index, one in enumerate(given)]


def _refuse_many(given: Collection[Any], where: str) -> None:
    if len(given) > MOST:
        raise InvalidArgument(where, f"{len(given)} members", f"at most {MOST}")


def _text(given: Any, where: str) -> str:
    if not isinstance(given, str):
        raise InvalidArgument(where, json.dumps(given), "a text")
    return given


def _truth(given: Any, where: str) -> bool:
    if not isinstance(given, bool):
        raise InvalidArgument(where, json.dumps(given), "true or false")
    return given


def _whole(given: Any, where: str, low: int, high: int) -> int:
    if isinstance(given, bool) or not isinstance(given, int) or not low <= given <= high:
        raise InvalidArgument(where, json.dumps(given), f"an integer, {low} to {high}")
    return given


def _shape(given: Any, where: str) -> list[int]:
    if not isinstance(given, list):
        raise InvalidArgument(where, json.dumps(given), "a list of integers")
    _refuse_many(given, where)
    return [_whole(size, where, *SIZES) for size in given]
