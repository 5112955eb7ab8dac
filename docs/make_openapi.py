"""Writes the gateway's openapi.json and its page from the protos and the routes: `make docs`."""

import html
import json
import textwrap
from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto

import latentserve
from docs.make_api import ROOT, Protos, read_protos
from service.gateway.app import DESCRIPTIONS
from service.gateway.bodies import taken
from service.gateway.media import JSON, MULTIPART, NDJSON, NPY
from service.gateway.operations import OPERATIONS, STREAMS, Operation
from service.gateway.problems import PROBLEM
from service.gateway.replies import offers

DOCUMENT = ROOT / "service" / "gateway" / "openapi.json"
PAGE = ROOT / "service" / "gateway" / "api.html"

_PACKAGE = ".latentserve.v1."
# Number of a message's fields in descriptor.proto.
_FIELDS = 2
_Type = FieldDescriptorProto.Type
_SCALARS: Mapping[int, dict[str, Any]] = {
    _Type.TYPE_BOOL: {"type": "boolean"},
    _Type.TYPE_STRING: {"type": "string"},
    _Type.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
    _Type.TYPE_DOUBLE: {"type": "number"},
    _Type.TYPE_FLOAT: {"type": "number"},
    _Type.TYPE_INT32: {"type": "integer", "minimum": -(2**31), "maximum": 2**31 - 1},
    # As JSON keeps no integers above 2^53.
    _Type.TYPE_INT64: {"type": "string", "pattern": "^-?[0-9]{1,19}$"},
    _Type.TYPE_UINT64: {"type": "string", "pattern": "^[0-9]{1,20}$"},
}
_BINARY: dict[str, Any] = {"type": "string", "contentMediaType": "application/octet-stream"}
_STATUSES = {
    "400": "The request is wrong; `errors` names the field, the value got and the value wanted.",
    "401": "No token, or a wrong one.",
    "403": "The request comes from a page of an origin that may not call.",
    "404": "No such model, version or address.",
    "406": "None of the media types in Accept can be had.",
    "408": "The body did not arrive in time.",
    "409": "The model does not support the operation.",
    "413": "The request is too large.",
    "415": "The operation takes no body of that media type.",
    "421": "Host is not a name of this server.",
    "429": "The server is full; Retry-After says when to try again.",
    "500": "A fault of the server; its log has the `requestId`.",
    "503": "The server is not ready, or is stopping.",
    "504": "The deadline of Request-Timeout has passed.",
}
_MINE = {
    "output": ("string", "The array that an npy reply holds."),
    "tensors": ("string", "How JSON holds arrays: nested `lists` (up to 64 KiB), or `base64`."),
    "columns": ("integer", "Pictures in a row of a sheet. Default: a nearly square one."),
    "zoom": ("integer", "Enlargement of a sheet, 1 to 32. Default: 1."),
}
_OF_PICTURES = {
    "resize": ("boolean", "Whether pictures of another size or mode are converted."),
    "height": ("integer", "Height that they are resized to, of a model of free size."),
    "width": ("integer", "Width that they are resized to."),
}


def document(protos: Protos) -> dict[str, Any]:
    """Returns the OpenAPI document (version 3.1)."""
    paths: dict[str, Any] = {}
    schemas = _Schemas(protos)
    for path, rpc in DESCRIPTIONS.items():
        paths[_plain(path)] = {"get": _description(schemas, path, rpc)}
    metrics = _operation("metrics", "The metrics of the server, for Prometheus.", [])
    metrics["responses"]["200"] = {"description": "The metrics.", "content": {"text/plain": {}}}
    paths["/v1/metrics"] = {"get": metrics}
    for operation in (*OPERATIONS, *STREAMS):
        for version in ("", "/versions/{version}"):
            made = _of_model(schemas, operation, versioned=bool(version))
            paths[f"/v1/models/{{model}}{version}:{operation.name}"] = made
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "latentserve",
            "version": latentserve.__version__,
            "description": "Variational autoencoders behind HTTP: encode images to latents, decode "
            "latents to images, sample new ones, and more.",
        },
        "paths": paths,
        "components": {
            "schemas": {**schemas.made, "Problem": _problem()},
            **schemas.shared,
            "responses": {
                status: {
                    "description": meaning,
                    "content": {PROBLEM: {"schema": {"$ref": "#/components/schemas/Problem"}}},
                }
                for status, meaning in _STATUSES.items()
            },
            "securitySchemes": {
                "bearer": {"type": "http", "scheme": "bearer"},
                "basic": {"type": "http", "scheme": "basic"},
            },
        },
        "security": [{}, {"bearer": []}, {"basic": []}],
    }


class _Schemas:
    """Schemas of messages, made as they are referred to.

    Attributes:
        made: Schemas by name.
        shared: Other components, by kind and name.
    """

    def __init__(self, protos: Protos):
        self._protos = protos
        self.made: dict[str, Any] = {}
        self.shared: dict[str, dict[str, Any]] = {"parameters": {}, "requestBodies": {}}

    def share(self, kind: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Puts something that several operations have in one place; returns a reference to it."""
        self.shared[kind][name] = value
        return {"$ref": f"#/components/{kind}/{name}"}

    def text(self, rpc: str) -> str:
        """The comment on a method."""
        for _service, method, comment in self._protos.methods():
            if method.name == rpc:
                return "\n\n".join(comment)
        raise LookupError(rpc)

    def of_call(self, rpc: str) -> tuple[str, str]:
        """Names of a method's request and reply; those within the messages of a stream."""
        for _service, method, _comment in self._protos.methods():
            if method.name == rpc:
                names = [
                    name.removeprefix(_PACKAGE) for name in (method.input_type, method.output_type)
                ]
                request, reply = (name.replace("Stream", "") for name in names)
                return request, reply
        raise LookupError(rpc)

    def request(self, name: str, aliases: Mapping[str, str]) -> dict[str, Any]:
        """Schema of the JSON body of a request; its model stands in the path."""
        file, path, message = self._protos.messages[f"{_PACKAGE}{name}"]
        properties = {}
        for place, field in enumerate(message.field):
            if field.name != "model":
                comment = self._protos.comment(file, (*path, _FIELDS, place))
                properties[field.json_name] = self._field(message, field, comment, taken=True)
        for alias, field_name in aliases.items():
            (field,) = (field for field in message.field if field.name == field_name)
            properties[alias] = properties.pop(field.json_name)
        return {"type": "object", "properties": properties, "additionalProperties": False}

    def reference(self, name: str) -> dict[str, Any]:
        """A reference to the schema of a reply."""
        if name not in self.made:
            self.made[name] = {}  # messages may refer to each other
            file, path, message = self._protos.messages[f"{_PACKAGE}{name}"]
            self.made[name] = {
                "type": "object",
                "description": "\n\n".join(self._protos.comment(file, path)),
                "properties": {
                    field.json_name: self._field(
                        message,
                        field,
                        self._protos.comment(file, (*path, _FIELDS, place)),
                        taken=False,
                    )
                    for place, field in enumerate(message.field)
                },
            }
        return {"$ref": f"#/components/schemas/{name}"}

    def parameters(self, name: str) -> Iterable[dict[str, Any]]:
        """Query parameters of the fields of a request."""
        file, path, message = self._protos.messages[f"{_PACKAGE}{name}"]
        for place, field in enumerate(message.field):
            if field.type in (_Type.TYPE_MESSAGE, _Type.TYPE_STRING, _Type.TYPE_BYTES):
                continue
            schema = self._field(message, field, (), taken=True)
            text = "\n\n".join(self._protos.comment(file, (*path, _FIELDS, place)))
            if field.label == FieldDescriptorProto.LABEL_REPEATED:
                yield _parameter(field.name, schema, text, explode=False)
            else:
                yield _parameter(field.name, schema, text)

    def _field(
        self,
        message: DescriptorProto,
        field: FieldDescriptorProto,
        comment: Iterable[str],
        *,
        taken: bool,
    ) -> dict[str, Any]:
        schema = self._type(message, field, taken=taken)
        repeated = field.label == FieldDescriptorProto.LABEL_REPEATED
        if repeated and "additionalProperties" not in schema:
            schema = {"type": "array", "items": schema}
        text = "\n\n".join(comment)
        return {**schema, "description": text} if text else schema

    def _type(
        self, message: DescriptorProto, field: FieldDescriptorProto, *, taken: bool
    ) -> dict[str, Any]:
        for entry in message.nested_type:
            if entry.options.map_entry and field.type_name.endswith(f".{entry.name}"):
                value = self._type(entry, entry.field[1], taken=taken)
                return {"type": "object", "additionalProperties": value}
        if field.type == _Type.TYPE_ENUM:
            return self._enum(field.type_name, taken=taken)
        if field.type != _Type.TYPE_MESSAGE:
            schema = _SCALARS[field.type]
            if taken and field.type in (_Type.TYPE_INT64, _Type.TYPE_UINT64):
                low = 0 if field.type == _Type.TYPE_UINT64 else -(2**53)
                return {"anyOf": [schema, {"type": "integer", "minimum": low, "maximum": 2**53}]}
            return dict(schema)
        name = field.type_name.removeprefix(_PACKAGE)
        if field.type_name == ".google.protobuf.Timestamp":
            return {"type": "string", "format": "date-time"}
        if name in ("Tensor", "Images"):
            lists = {"type": "array", "description": "Nested lists, up to 64 KiB as an array."}
            return {"anyOf": [lists, self.reference(name)]}
        return self.reference(name)

    def _enum(self, type_name: str, *, taken: bool) -> dict[str, Any]:
        for file in self._protos.files:
            for enum in file.enum_type:
                if f".{file.package}.{enum.name}" == type_name:
                    names = [value.name for value in enum.value]
                    prefix = names[0].removesuffix("UNSPECIFIED")
                    short = [name.removeprefix(prefix).lower() for name in names]
                    return {"type": "string", "enum": [*short, *names] if taken else names}
        raise LookupError(type_name)


def _description(schemas: _Schemas, path: str, rpc: str) -> dict[str, Any]:
    _request, reply = schemas.of_call(rpc)
    name = rpc + ("Version" if "version" in path else "")
    made = _operation(name, schemas.text(rpc), _of_path("version" in path, "model" in path))
    made["parameters"].append(_own("tensors"))
    made["responses"]["200"] = {
        "description": "The description.",
        "content": {JSON: {"schema": schemas.reference(reply)}},
    }
    return made


def _of_model(schemas: _Schemas, operation: Operation, *, versioned: bool) -> dict[str, Any]:
    request, reply = schemas.of_call(operation.rpc)
    names = {value: key for key, value in operation.aliases.items()}
    parameters = [*_of_path(versioned, True)]
    own = {"output", "tensors"} | ({"columns", "zoom"} if operation not in STREAMS else set())
    taken_names = set()
    for parameter in schemas.parameters(request):
        parameter["name"] = names.get(parameter["name"], parameter["name"])
        taken_names.add(parameter["name"])
        parameters.append(parameter)
    parameters += [_own(name) for name in _MINE if name in own]
    if operation.pictures and operation not in STREAMS:
        parameters += [
            _parameter(name, {"type": kind}, text)
            for name, (kind, text) in _OF_PICTURES.items()
            if name not in taken_names
        ]
    if operation in STREAMS:
        text = "Maximum rows that are computed at a time."
        parameters.append(_parameter("chunk_rows", {"type": "integer"}, text))
    parameters = [
        one
        if one["in"] == "path"
        else schemas.share("parameters", f"{operation.name}.{one['name']}", one)
        for one in parameters
    ]
    made: dict[str, Any] = {}
    for method in ("get", "post") if operation.gettable else ("post",):
        name = method + operation.name.title().replace("_", "") + ("Version" if versioned else "")
        made[method] = _operation(name, schemas.text(operation.rpc), list(parameters))
        made[method]["responses"]["200"] = {
            "description": "The reply.",
            "headers": {
                "X-Request-Id": {"schema": {"type": "string"}, "description": "Its id in the log."},
            },
            "content": _contents(schemas, operation, reply),
        }
        if operation.gettable and operation not in STREAMS and method == "get":
            made[method]["responses"]["304"] = {"description": "It is the one of If-None-Match."}
    bodies = {"content": _bodies(schemas, operation, request)}
    made["post"]["requestBody"] = schemas.share("requestBodies", operation.name, bodies)
    return made


def _contents(schemas: _Schemas, operation: Operation, reply: str) -> dict[str, Any]:
    if operation in STREAMS:
        return {NDJSON: {"schema": _BINARY}, NPY: {"schema": _BINARY}}
    return {
        offer: {"schema": schemas.reference(reply) if offer == JSON else _BINARY}
        for offer in offers(operation, "", body=False)
    }


def _bodies(schemas: _Schemas, operation: Operation, request: str) -> dict[str, Any]:
    if operation in STREAMS and operation.array:
        return {NDJSON: {"schema": _BINARY}, NPY: {"schema": _BINARY}}
    made: dict[str, Any] = {}
    for media in taken(operation):
        if media == JSON:
            made[media] = {"schema": schemas.request(request, operation.aliases)}
        elif media == MULTIPART:
            files = {"type": "array", "items": _BINARY}
            made[media] = {"schema": {"type": "object", "properties": {"images": files}}}
        else:
            made[media] = {"schema": _BINARY}
    return made


def _operation(name: str, text: str, parameters: list[dict[str, Any]]) -> dict[str, Any]:
    timeout = {
        "name": "Request-Timeout",
        "in": "header",
        "schema": {"type": "number", "exclusiveMinimum": 0},
        "description": "Seconds after which the caller stops waiting.",
    }
    failures = {status: {"$ref": f"#/components/responses/{status}"} for status in _STATUSES}
    return {
        "operationId": name,
        "summary": text.split(". ")[0].split("\n")[0].rstrip("."),
        "description": text,
        "parameters": [*parameters, timeout],
        "responses": {"200": {}, **failures},
    }


def _of_path(versioned: bool, of_model: bool) -> list[dict[str, Any]]:
    made = []
    if of_model:
        model = {"type": "string", "pattern": "^[^/:]+$"}
        made.append({**_parameter("model", model, "The model."), "in": "path", "required": True})
    if versioned:
        version = {"type": "integer", "minimum": 1, "maximum": 2**53}
        made.append(
            {**_parameter("version", version, "Its version."), "in": "path", "required": True}
        )
    return made


def _own(name: str) -> dict[str, Any]:
    kind, text = _MINE[name]
    return _parameter(name, {"type": kind}, text)


def _parameter(name: str, schema: dict[str, Any], text: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "in": "query", "schema": schema, "description": text, **more}


def _problem() -> dict[str, Any]:
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
            "code": {**text, "description": "Name of the gRPC status."},
            "errors": {"type": "array", "items": violation},
            "index": {"type": "integer", "description": "Index of the invalid picture."},
            "retry_seconds": {"type": "number"},
            "requestId": text,
        },
    }


def _plain(path: str) -> str:
    return path.replace(":model}", "}").replace(":int}", "}")


def page(made: Mapping[str, Any]) -> str:
    """Returns the page for people: plain HTML without scripts."""
    parts = []
    for path, methods in made["paths"].items():
        if "{version}" in path:
            continue
        for method, operation in methods.items():
            rows = "".join(
                f"<tr><td><code>{_text(parameter['name'])}</code></td>"
                f"<td>{_text(parameter['description'])}</td></tr>"
                for parameter in (_found(made, one) for one in operation["parameters"])
                if parameter["in"] == "query"
            )
            body = _found(made, operation.get("requestBody", {}))
            bodies = ", ".join(body.get("content", ()))
            replies = ", ".join(operation["responses"]["200"].get("content", ()))
            parts.append(
                f"<section><h2><code><b>{method.upper()}</b> {_text(path)}</code></h2>"
                f"<p>{_text(operation['description'])}</p>"
                + (f"<p>Body: {_text(bodies)}.</p>" if bodies else "")
                + f"<p>Reply: {_text(replies)}.</p>"
                + (
                    f"<details><summary>Parameters</summary><table>{rows}</table></details>"
                    if rows
                    else ""
                )
                + "</section>"
            )
    return _PAGE.replace("@SECTIONS@", "\n".join(parts)).replace(
        "@VERSION@", made["info"]["version"]
    )


def _found(made: Mapping[str, Any], one: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a reference refers to; anything else is itself."""
    if "$ref" not in one:
        return one
    _, components, kind, name = one["$ref"].split("/")
    found: Mapping[str, Any] = made[components][kind][name]
    return found


def _text(text: str) -> str:
    return html.escape(text).replace("\n\n", "<br>")


_PAGE = textwrap.dedent("""\
    <!doctype html>
    <html lang="en">
    <head>
    <meta charset="utf-8">
    <meta name="viewport" content="width=device-width, initial-scale=1">
    <title>latentserve: the HTTP API</title>
    <link rel="stylesheet" href="/api.css">
    </head>
    <body>
    <main>
    <h1>latentserve @VERSION@: the HTTP API</h1>
    <p>Every model, one address: <code>/v1/models/MODEL:OPERATION</code>, or
    <code>/v1/models/MODEL/versions/VERSION:OPERATION</code> for a version of it. The same as a
    document for programs: <a href="/openapi.json">/openapi.json</a>.</p>
    <pre>curl -o sevens.png 'localhost:8000/v1/models/mnist:sample?count=20&amp;label=7&amp;seed=7'
    curl --data-binary @digit.png -H 'content-type: image/png' \\
      localhost:8000/v1/models/mnist:score</pre>
    @SECTIONS@
    </main>
    </body>
    </html>
    """)


def main() -> None:
    """Writes both files."""
    made = document(read_protos())
    DOCUMENT.write_text(json.dumps(made, indent=1) + "\n")
    PAGE.write_text(page(made))


if __name__ == "__main__":
    main()
