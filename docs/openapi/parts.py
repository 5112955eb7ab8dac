"""Parts of the OpenAPI document that all routes share: parameters, statuses, problems."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from service.gateway.exchange import MAX_SECONDS
from service.gateway.problems import PROBLEM

#: Schema of bytes.
BINARY: Final[Mapping[str, Any]] = {
    "type": "string",
    "contentMediaType": "application/octet-stream",
}
_STATUSES: Final = {
    400: "The request is wrong; `errors` names the field, the value got and the value wanted.",
    401: "No token, or a wrong one.",
    403: "The request comes from a page of an origin that may not call.",
    404: "No such model, version or address.",
    406: "None of the media types in Accept can be had.",
    408: "The body did not arrive in time.",
    409: "The model does not support the operation.",
    413: "The request is too large.",
    415: "The operation takes no body of that media type.",
    421: "Host is not a name of this server.",
    429: "The server is full; Retry-After says when to try again.",
    431: "The request line and the headers are longer than 32 KiB.",
    500: "A fault of the server; its log has the `requestId`.",
    503: "The server is not ready, or is stopping.",
    504: "The deadline of Request-Timeout has passed.",
}
#: Statuses of failures that any route can answer with.
ANY: Final = (400, 403, 421, 431, 500)
#: Those of routes that make a call, which can have a deadline and a reply that finds no room.
OF_CALLS: Final = (*ANY, 429, 503, 504)
#: Those of routes that name a model.
OF_MODELS: Final = (*OF_CALLS, 401, 404)
#: Those of calls with a body.
OF_BODIES: Final = (408, 413)


def operation(
    name: str,
    text: str,
    parameters: Iterable[Mapping[str, Any]],
    failures: Iterable[int],
    **more: Any,
) -> dict[str, Any]:
    """Describes one method of one path.

    Args:
        name: Its `operationId`.
        text: What it does; the first sentence is the summary.
        parameters: Its parameters, without Request-Timeout.
        failures: Statuses of its failures.
        more: Other members, `success` for the reply among them.
    """
    statuses = sorted(set(failures))
    timed = [_TIMEOUT] if 504 in statuses else []
    replies = {str(status): {"$ref": f"#/components/responses/{status}"} for status in statuses}
    return {
        "operationId": name,
        "summary": text.split(". ")[0].split("\n")[0].rstrip("."),
        "description": text,
        "parameters": [*parameters, *timed],
        "responses": {"200": more.pop("success"), **replies},
        **more,
    }


def reply(text: str, content: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """Describes a reply.

    Args:
        text: What it is.
        content: Schemas by media type.
        more: Other members.
    """
    found = {media: {"schema": schema} if schema else {} for media, schema in content.items()}
    return {"description": text, "content": found, **more}


def parameter(
    name: str, schema: Mapping[str, Any], text: str, *, where: str = "query", **more: Any
) -> dict[str, Any]:
    """Describes a parameter.

    Args:
        name: Its name.
        schema: Schema of its value.
        text: What it is for.
        where: `query`, `path` or `header`.
        more: Other members.
    """
    required = {"required": True} if where == "path" else {}
    found = {"name": name, "in": where, "schema": schema, "description": text}
    return {**found, **required, **more}


def of_path(*, of_model: bool, versioned: bool) -> list[dict[str, Any]]:
    """The parameters `model` and `version` of a path, as far as it has them."""
    made = []
    if of_model:
        model = {"type": "string", "pattern": "^[^/:]+$"}
        made.append(parameter("model", model, "The model.", where="path"))
    if versioned:
        version = {"type": "integer", "minimum": 1, "maximum": 2**53}
        made.append(parameter("version", version, "Its version.", where="path"))
    return made


def failures() -> dict[str, Any]:
    """The replies that say what went wrong, by status."""
    problem = {"$ref": "#/components/schemas/Problem"}
    return {
        str(status): reply(meaning, {PROBLEM: problem}) for status, meaning in _STATUSES.items()
    }


def problem() -> dict[str, Any]:
    """Schema of what went wrong."""
    text = {"type": "string"}
    violation = {"type": "object", "properties": {"field": text, "description": text}}
    return {
        "type": "object",
        "description": "What went wrong (RFC 9457).",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": text,
            "title": text,
            "status": {"type": "integer"},
            "detail": text,
            "error": {**text, "description": "`detail` again, below /v2: Triton's name for it."},
            "code": {**text, "description": "Name of the gRPC status."},
            "errors": {"type": "array", "items": violation},
            "index": {"type": "integer", "description": "Index of the invalid picture."},
            "retry_seconds": {"type": "number"},
            "requestId": text,
        },
    }


_TIMEOUT: Final = parameter(
    "Request-Timeout",
    {"type": "number", "exclusiveMinimum": 0, "maximum": MAX_SECONDS},
    "Seconds after which the caller stops waiting.",
    where="header",
)
