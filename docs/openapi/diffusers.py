"""Paths of `/diffusers`: the remote VAE."""

from collections.abc import Iterator
from typing import Any, Final

from docs.openapi.messages import Schemas
from docs.openapi.parts import (
    BINARY,
    OF_BODIES,
    OF_MODELS,
    of_path,
    operation,
    parameter,
    reply,
)
from service.gateway.diffusers import parameters
from service.gateway.diffusers.endpoints import DECODED, ENCODED, TENSOR

_TEXTS: Final = {
    "decode": "Decodes latents, for `remote_decode` of diffusers. With `shape` and `dtype` alone "
    "the reply is one JPEG.",
    "encode": "Encodes images, for `remote_encode` of diffusers. Without `shape` the body is a "
    "picture file, with it the elements of a tensor in C order, little-endian.",
}
_TEXT: Final = {"type": "string"}
_HEADERS: Final = {
    "X-Model": {"schema": _TEXT, "description": "The model and version that answered."},
    "X-Request-Id": {"schema": _TEXT, "description": "Its id in the log."},
    "Shape": {"schema": _TEXT, "description": "Of a tensor: the size of each axis, as JSON."},
    "Dtype": {"schema": _TEXT, "description": "Of a tensor: the type of its elements."},
}
_SEED: Final = {"schema": _TEXT, "description": "The seed that a draw has used."}


def paths(schemas: Schemas) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yields each path and its methods.

    Args:
        schemas: Schemas of the messages of LatentService.
    """
    for version in ("", "/versions/{version}"):
        for name, found in (("decode", _decode), ("encode", _encode)):
            yield f"/diffusers/{{model}}{version}/{name}", {"post": found(schemas, bool(version))}


def _decode(schemas: Schemas, versioned: bool) -> dict[str, Any]:
    query = [_own(one, required=one.name in ("shape", "dtype")) for one in parameters.DECODE]
    query += _of_fields(schemas, "DecodeRequest", parameters.DECODE_FIELDS)
    content = dict.fromkeys((TENSOR, "image/jpeg", "image/png"), BINARY)
    success = reply("The images.", content, headers=_HEADERS)
    return _operation("decode", query, DECODED, success, versioned)


def _encode(schemas: Schemas, versioned: bool) -> dict[str, Any]:
    query = [_own(one) for one in parameters.ENCODE]
    query += _of_fields(schemas, "EncodeRequest", parameters.ENCODE_FIELDS)
    query += _of_fields(schemas, "EncodedImages", parameters.PICTURE_FIELDS)
    success = reply("The latents.", {TENSOR: BINARY}, headers={**_HEADERS, "X-Seed": _SEED})
    return _operation("encode", query, ENCODED, success, versioned)


def _operation(
    name: str,
    query: list[dict[str, Any]],
    media: tuple[str, ...],
    success: dict[str, Any],
    versioned: bool,
) -> dict[str, Any]:
    body = {"required": True, "content": {one: {"schema": BINARY} for one in media}}
    return operation(
        f"diffusers{name.title()}{'Version' if versioned else ''}",
        _TEXTS[name],
        [*of_path(of_model=True, versioned=versioned), *query],
        (*OF_MODELS, *OF_BODIES, 409, 415),
        success=success,
        requestBody=body,
    )


def _own(one: parameters.Parameter[Any], *, required: bool = False) -> dict[str, Any]:
    more: dict[str, Any] = {"required": True} if required else {}
    return parameter(one.name, one.schema, one.text, **more)


def _of_fields(schemas: Schemas, message: str, names: tuple[str, ...]) -> list[dict[str, Any]]:
    """Parameters that are fields of a message; `label` is one of `labels`."""
    found = {one["name"]: one for one in schemas.parameters(message)}
    if "label" in names and "label" not in found:
        found["label"] = {**found["labels"], "name": "label"}
    return [found[name] for name in names]
