"""ModelInfer's messages: to a request that does not depend on gRPC, and from its reply."""

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from service.api.inference import inference_service_pb2 as pb
from service.api.inference.infer import InferReply, InferRequest
from service.api.inference.parameters import Value
from service.api.inference.tensors import BF16, FLOATS, FP16, FP32, INTEGERS, UINT8, Tensor
from service.api.wire import Chunks, tag
from service.errors import InvalidArgument

# Of each type, the field of typed contents that has its elements, and how NumPy reads them.
_CONTENTS: Final[Mapping[str, tuple[str, np.dtype[Any]]]] = {
    FP32: ("fp32_contents", FLOATS["FP32"]),
    "FP64": ("fp64_contents", FLOATS["FP64"]),
    UINT8: ("uint_contents", np.dtype("u1")),
    "UINT32": ("uint_contents", INTEGERS["UINT32"]),
    "UINT64": ("uint64_contents", INTEGERS["UINT64"]),
    "INT32": ("int_contents", INTEGERS["INT32"]),
    "INT64": ("int64_contents", INTEGERS["INT64"]),
}
# Parameters of inputs and outputs that would change what is read or returned. Others are ignored:
# kserve's client, for one, states the size of raw contents.
_SHARED_MEMORY: Final = "shared_memory_region"
_CLASSIFICATION: Final = "classification"
_RAW: Final = pb.ModelInferResponse.DESCRIPTOR.fields_by_name["raw_output_contents"].number
_FIELDS: Final = pb.InferTensorContents.DESCRIPTOR.fields_by_name


def is_typed(message: pb.ModelInferRequest) -> bool:
    """Whether a request has its elements in typed contents, so that its reply is to have them."""
    return not message.raw_input_contents and len(message.inputs) > 0


def read(message: pb.ModelInferRequest) -> InferRequest:
    """Reads a request.

    Raises:
        InvalidArgument: Contents are missing, or given twice; or an input, output or parameter is
            of a kind that is not supported.
    """
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InvalidArgument(
            "raw_input_contents",
            f"{len(raw)} of them",
            f"{len(message.inputs)}, one for each input",
        )
    inputs: dict[str, Tensor] = {}
    for index, tensor in enumerate(message.inputs):
        where = f"inputs.{tensor.name}" if tensor.name else f"inputs[{index}].name"
        if not tensor.name or tensor.name in inputs:
            raise InvalidArgument(where, "two inputs" if tensor.name else "no name", "one")
        _refuse(tensor.parameters, where, _SHARED_MEMORY)
        if not raw:
            data = _typed(tensor, where)
        elif tensor.HasField("contents"):
            got = "contents beside raw_input_contents"
            raise InvalidArgument(f"{where}.contents", got, "one of them")
        else:
            data = raw[index]
        inputs[tensor.name] = Tensor(tensor.name, tensor.datatype, tuple(tensor.shape), data)
    for output in message.outputs:
        _refuse(output.parameters, f"outputs.{output.name}", _SHARED_MEMORY, _CLASSIFICATION)
    return InferRequest(
        message.model_name,
        message.model_version,
        {name: _value(name, value) for name, value in message.parameters.items()},
        inputs,
        [output.name for output in message.outputs],
    )


def write(reply: InferReply, request_id: str, *, typed: bool) -> Chunks:
    """Serialises a reply.

    Args:
        reply: The reply.
        request_id: `id` of the request.
        typed: Whether to send elements in typed contents, if every output's type has them.
    """
    message = pb.ModelInferResponse(
        model_name=reply.model,
        model_version=reply.version,
        id=request_id,
        parameters={
            name: pb.InferParameter(string_param=value) for name, value in reply.parameters.items()
        },
    )
    typed = typed and all(tensor.datatype in _CONTENTS for tensor in reply.outputs)
    for tensor in reply.outputs:
        output = message.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if typed:
            _put_typed(output.contents, tensor)
    chunks: list[bytes | memoryview] = [message.SerializeToString()]
    if not typed:
        # Not by protobuf, which would copy them.
        for tensor in reply.outputs:
            chunks += tag(_RAW, len(tensor.data)), tensor.data
    return tuple(chunks)


def _typed(tensor: Any, where: str) -> bytes:
    """Elements of typed contents, as raw contents have them."""
    if tensor.datatype in (FP16, BF16):
        raise InvalidArgument(
            f"{where}.contents", f"no field for {tensor.datatype}", "raw_input_contents"
        )
    if tensor.datatype not in _CONTENTS:
        wanted = ", ".join((FP32, FP16, BF16, UINT8, "INT64"))
        raise InvalidArgument(f"{where}.datatype", repr(tensor.datatype), f"one of {wanted}")
    name, dtype = _CONTENTS[tensor.datatype]
    given = [field.name for field, _ in tensor.contents.ListFields()]
    if given not in ([], [name]):
        raise InvalidArgument(f"{where}.contents", ", ".join(given), name)
    elements = getattr(tensor.contents, name)
    wanted_count = math.prod(tensor.shape)
    if len(elements) != wanted_count:
        raise InvalidArgument(
            f"{where}.contents.{name}",
            f"{len(elements)} elements",
            f"{wanted_count} for {list(tensor.shape)}",
        )
    try:
        return np.array(elements, dtype).tobytes()
    except OverflowError:
        raise InvalidArgument(
            f"{where}.contents.{name}", f"values up to {max(elements)}", "0 to 255 for UINT8"
        ) from None


def _put_typed(contents: pb.InferTensorContents, tensor: Tensor) -> None:
    name, dtype = _CONTENTS[tensor.datatype]
    if tensor.datatype == FP32:
        # Packed floats are the elements as they are, so they need not become Python's first.
        contents.MergeFromString(tag(_FIELDS[name].number, len(tensor.data)) + tensor.data)
    else:
        getattr(contents, name).extend(np.frombuffer(tensor.data, dtype).tolist())


def _refuse(parameters: Mapping[str, Any], where: str, *unsupported: str) -> None:
    for name in unsupported:
        if name in parameters:
            raise InvalidArgument(
                f"{where}.parameters.{name}", "a parameter that is not supported", "none"
            )


def _value(name: str, parameter: pb.InferParameter) -> Value:
    choice = parameter.WhichOneof("parameter_choice")
    if choice is None:
        raise InvalidArgument(f"parameters.{name}", "no value", "one")
    value: Value = getattr(parameter, choice)
    return value
