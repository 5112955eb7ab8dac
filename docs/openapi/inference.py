"""Paths of `/v2`: the Open Inference Protocol."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from docs.openapi.messages import Schemas
from docs.openapi.parts import (
    BINARY,
    OF_BODIES,
    OF_CALLS,
    OF_MODELS,
    operation,
    parameter,
    reply,
)
from service.api.inference.tensors import DATATYPES
from service.gateway.inference import endpoints, messages
from service.gateway.media import JSON
from service.gateway.problems import PROBLEM

_PARAMETER: Final = {"anyOf": [{"type": name} for name in ("boolean", "number", "string")]}
_TRUTH: Final = {"type": "boolean"}
_LENGTH: Final = {"type": "integer", "minimum": 0}
_AXIS: Final = {"type": "integer", "minimum": messages.SIZES[0], "maximum": messages.SIZES[1]}
_DATA: Final = {
    "type": "array",
    "description": "Elements in C order, flat or nested, up to 64 KiB, unless they are bytes.",
}
_BODIES: Final = (
    "{} Elements of tensors are in the JSON, or follow it as bytes (the binary tensor data "
    "extension); then Inference-Header-Content-Length is the length of the JSON."
)


def paths(schemas: Schemas) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each path and its methods.

    Args:
        schemas: Schemas of the messages of GRPCInferenceService.
    """
    every = (*OF_CALLS, 401)
    yield "/v2", {"get": _described(schemas, "ServerMetadata", [], every)}
    yield "/v2/health/live", {"get": _probe(schemas, "ServerLive", [], OF_CALLS)}
    yield "/v2/health/ready", {"get": _probe(schemas, "ServerReady", [], OF_CALLS)}
    for versioned in (False, True):
        path = "/v2/models/{name}" + ("/versions/{version}" if versioned else "")
        model = _model(versioned)
        yield path, {"get": _described(schemas, "ModelMetadata", model, OF_MODELS)}
        yield f"{path}/config", {"get": _described(schemas, "ModelConfig", model, OF_MODELS)}
        yield f"{path}/ready", {"get": _probe(schemas, "ModelReady", model, OF_MODELS)}
        yield f"{path}/infer", {"post": _infer(schemas, model)}
    body = schemas.request("RepositoryIndexRequest", {})
    models = schemas.reference("RepositoryIndexResponse.ModelIndex")
    index = operation(
        "inferenceRepositoryIndex",
        schemas.text("RepositoryIndex"),
        [],
        (*every, *OF_BODIES),
        success=reply("The models.", {JSON: {"type": "array", "items": models}}),
        requestBody={"content": {JSON: {"schema": body}}},
    )
    yield "/v2/repository/index", {"post": index}


def _model(versioned: bool) -> list[dict[str, Any]]:
    text = {"type": "string", "pattern": "^[^/]+$"}
    made = [parameter("name", text, "The model, NAME.OPERATION.", where="path")]
    if versioned:
        made.append(parameter("version", text, "Its version.", where="path"))
    return made


def _name(rpc: str, parameters: list[dict[str, Any]]) -> str:
    return f"inference{rpc}" + ("Version" if len(parameters) > 1 else "")


def _described(
    schemas: Schemas, rpc: str, parameters: list[dict[str, Any]], failures: tuple[int, ...]
) -> dict[str, Any]:
    # The description alone, without the message around it.
    name = "ModelConfig" if rpc == "ModelConfig" else f"{rpc}Response"
    success = reply("The description.", {JSON: schemas.reference(name)})
    text = schemas.text(rpc)
    return operation(_name(rpc, parameters), text, parameters, failures, success=success)


def _probe(
    schemas: Schemas, rpc: str, parameters: list[dict[str, Any]], failures: tuple[int, ...]
) -> dict[str, Any]:
    """A probe: 200 if it is so, 503 with the same body if not."""
    members = schemas.fields(f"{rpc}Response", taken=False)
    if parameters:
        members["name"] = {"type": "string", "description": "Name of the model."}
    schema = {"type": "object", "properties": members, "required": list(members)}
    made = operation(
        _name(rpc, parameters),
        schemas.text(rpc),
        parameters,
        failures,
        success=reply("It is so.", {JSON: schema}),
    )
    problem = {"$ref": "#/components/schemas/Problem"}
    made["responses"]["503"] = reply("It is not so.", {JSON: schema, PROBLEM: problem})
    return made


def _infer(schemas: Schemas, model: list[dict[str, Any]]) -> dict[str, Any]:
    length = parameter(
        messages.HEAD_LENGTH.title(),
        _LENGTH,
        "Length of the JSON in bytes, if elements of tensors follow it.",
        where="header",
    )
    request = {JSON: {"schema": _request(schemas)}, endpoints.BINARY: {"schema": BINARY}}
    told = {"schema": _LENGTH, "description": "Length of the JSON, if elements follow it."}
    return operation(
        _name("ModelInfer", model),
        _BODIES.format(schemas.text("ModelInfer")),
        [*model, length],
        (*OF_MODELS, *OF_BODIES, 409),
        success=reply(
            "The outputs.",
            {JSON: _reply(schemas), endpoints.BINARY: BINARY},
            headers={messages.HEAD_LENGTH.title(): told},
        ),
        requestBody={"required": True, "content": request},
    )


def _request(schemas: Schemas) -> dict[str, Any]:
    """Schema of a request: what `messages.read` reads, with the comments of the protos."""
    binary = {messages.BINARY: _TRUTH}
    inputs = _members(
        schemas,
        "ModelInferRequest.InferInputTensor",
        messages.INPUT_MEMBERS,
        shape={"type": "array", "items": _AXIS},
        datatype={"enum": list(dict.fromkeys((*messages.LISTED, *DATATYPES.values())))},
        parameters=_parameters({messages.BINARY_SIZE: _LENGTH}),
        data=_DATA,
    )
    outputs = _members(
        schemas,
        "ModelInferRequest.InferRequestedOutputTensor",
        messages.OUTPUT_MEMBERS,
        parameters=_parameters(binary),
    )
    return _members(
        schemas,
        "ModelInferRequest",
        messages.MEMBERS,
        parameters=_parameters({messages.ALL_BINARY: _TRUTH}),
        inputs={"type": "array", "items": {**inputs, "required": ["name", "shape", "datatype"]}},
        outputs={"type": "array", "items": {**outputs, "required": ["name"]}},
    )


def _reply(schemas: Schemas) -> dict[str, Any]:
    """Schema of a reply: what `messages.write` writes."""
    size = {"type": "object", "properties": {messages.BINARY_SIZE: _LENGTH}}
    output = _members(
        schemas,
        "ModelInferResponse.InferOutputTensor",
        messages.INPUT_MEMBERS,
        parameters=size,
        data=_DATA,
    )
    texts = {"type": "object", "additionalProperties": {"type": "string"}}
    made = _members(
        schemas,
        "ModelInferResponse",
        ("id", "model_name", "model_version", "parameters", "outputs"),
        parameters=texts,
        outputs={
            "type": "array",
            "items": {**output, "required": ["name", "datatype", "shape"]},
        },
    )
    return {**made, "required": ["model_name", "model_version", "outputs"]}


def _members(
    schemas: Schemas, message: str, names: tuple[str, ...], **own: Mapping[str, Any]
) -> dict[str, Any]:
    """Schema of an object.

    Args:
        schemas: Schemas of the messages.
        message: The message whose comments its members have.
        names: Its members.
        own: Schemas of those that JSON has in another form.
    """
    told = schemas.comments(message)
    fields = schemas.fields(message, without=told.keys() - set(names) | own.keys())
    members = {}
    for name in names:
        # The text of the proto, unless there is an own one.
        text = {"description": told[name]} if name in told else {}
        members[name] = {**text, **own[name]} if name in own else fields[name]
    return {"type": "object", "properties": members, "additionalProperties": False}


def _parameters(known: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(known), "additionalProperties": _PARAMETER}
