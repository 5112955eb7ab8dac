"""Paths of `/v1`: descriptions, operations on models, metrics."""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from docs.openapi.messages import Schemas
from docs.openapi.parts import (
    ANY,
    BINARY,
    OF_BODIES,
    OF_CALLS,
    OF_MODELS,
    of_path,
    operation,
    parameter,
    reply,
)
from service.gateway.app import DESCRIPTIONS
from service.gateway.bodies import taken
from service.gateway.media import JSON, MULTIPART, NDJSON, NPY
from service.gateway.operations import OPERATIONS, STREAMS, Operation
from service.gateway.replies import MOST_COLUMNS, MOST_ZOOM, TENSORS, offers

_TENSORS: Final = parameter(
    "tensors",
    {"type": "string", "enum": list(TENSORS)},
    "How JSON holds arrays: nested `lists` (up to 64 KiB), or `base64`.",
)
_OF_SHEETS: Final = (
    parameter(
        "columns",
        {"type": "integer", "minimum": 1, "maximum": MOST_COLUMNS},
        "Pictures in a row of a sheet. Default: a nearly square one.",
    ),
    parameter(
        "zoom",
        {"type": "integer", "minimum": 1, "maximum": MOST_ZOOM},
        "Enlargement of a sheet, 1 to 32. Default: 1.",
    ),
)
_OF_PICTURES: Final = {
    "resize": ("boolean", "Whether pictures of another size or mode are converted."),
    "height": ("integer", "Height that they are resized to, of a model of free size."),
    "width": ("integer", "Width that they are resized to."),
}
_METRICS: Final[Mapping[str, Any]] = {"text/plain": {}}
_NOT_MODIFIED: Final = {"description": "It is the one of If-None-Match."}
_REQUEST_ID: Final = {"schema": {"type": "string"}, "description": "Its id in the log."}


class Models:
    """The paths of `/v1`.

    Args:
        schemas: Schemas of the messages of LatentService.

    Attributes:
        shared: Components that several paths have, by kind and name.
    """

    def __init__(self, schemas: Schemas):
        self._schemas = schemas
        self.shared: dict[str, dict[str, Any]] = {"parameters": {}, "requestBodies": {}}

    def paths(self) -> Iterator[tuple[str, dict[str, Any]]]:
        """Yields each path and its methods."""
        for path, rpc in DESCRIPTIONS.items():
            yield (
                path.replace(":model}", "}").replace(":version}", "}"),
                {"get": self._description(path, rpc)},
            )
        text, success = "The metrics of the server, for Prometheus.", {"text/plain": {}}
        metrics = operation(
            "metrics", text, [], (*ANY, 401), success=reply("The metrics.", success)
        )
        yield "/v1/metrics", {"get": metrics}
        for one in (*OPERATIONS, *STREAMS):
            for version in ("", "/versions/{version}"):
                made = self._of_model(one, versioned=bool(version))
                yield f"/v1/models/{{model}}{version}:{one.name}", made

    def _description(self, path: str, rpc: str) -> dict[str, Any]:
        _request, answer = self._schemas.of_call(rpc)
        versioned, of_model = "version" in path, "{model" in path
        failures = (*OF_MODELS, 406) if of_model else (*OF_CALLS, 401, 406)
        return operation(
            rpc + ("Version" if versioned else ""),
            self._schemas.text(rpc),
            [*of_path(of_model=of_model, versioned=versioned), _TENSORS],
            failures,
            success=reply("The description.", {JSON: self._schemas.reference(answer)}),
        )

    def _of_model(self, one: Operation, *, versioned: bool) -> dict[str, Any]:
        request, answer = self._schemas.of_call(one.rpc)
        parameters = [
            *of_path(of_model=True, versioned=versioned),
            *(
                self._share("parameters", f"{one.name}.{found['name']}", found)
                for found in self._parameters(one, request)
            ),
        ]
        made: dict[str, Any] = {}
        for method in ("get", "post") if one.gettable else ("post",):
            name = method + one.name.title().replace("_", "") + ("Version" if versioned else "")
            failures = (*OF_MODELS, 406, 409)
            if method == "post":
                failures += (*OF_BODIES, 415)
            success = reply(
                "The reply.", self._contents(one, answer), headers={"X-Request-Id": _REQUEST_ID}
            )
            text = self._schemas.text(one.rpc)
            made[method] = operation(name, text, parameters, failures, success=success)
            if one.gettable and one not in STREAMS and method == "get":
                made[method]["responses"]["304"] = _NOT_MODIFIED
        bodies = {"content": self._bodies(one, request)}
        made["post"]["requestBody"] = self._share("requestBodies", one.name, bodies)
        return made

    def _parameters(self, one: Operation, request: str) -> Iterator[dict[str, Any]]:
        """Yields the query parameters of an operation."""
        names = {value: key for key, value in one.aliases.items()}
        taken_names = set()
        for found in self._schemas.parameters(request):
            found["name"] = names.get(found["name"], found["name"])
            taken_names.add(found["name"])
            yield found
        outputs = {"type": "string", "enum": list(one.arrays)}
        yield parameter("output", outputs, "The array that an npy reply holds.")
        yield _TENSORS
        if one not in STREAMS:
            yield from _OF_SHEETS
        else:
            text = "Maximum rows that are computed at a time."
            yield parameter("chunk_rows", {"type": "integer"}, text)
        if one.pictures and one not in STREAMS:
            for name, (kind, text) in _OF_PICTURES.items():
                if name not in taken_names:
                    yield parameter(name, {"type": kind}, text)

    def _share(self, kind: str, name: str, value: dict[str, Any]) -> dict[str, Any]:
        """Puts something that several paths have in one place; returns a reference to it."""
        self.shared[kind][name] = value
        return {"$ref": f"#/components/{kind}/{name}"}

    def _contents(self, one: Operation, answer: str) -> dict[str, Any]:
        if one in STREAMS:
            return {NDJSON: BINARY, NPY: BINARY}
        return {
            offer: self._schemas.reference(answer) if offer == JSON else BINARY
            for offer in offers(one, "", body=False)
        }

    def _bodies(self, one: Operation, request: str) -> dict[str, Any]:
        if one in STREAMS and one.array:
            return {NDJSON: {"schema": BINARY}, NPY: {"schema": BINARY}}
        made: dict[str, Any] = {}
        for media in taken(one):
            if media == JSON:
                made[media] = {"schema": self._schemas.request(request, one.aliases)}
            elif media == MULTIPART:
                files = {"type": "array", "items": BINARY}
                made[media] = {"schema": {"type": "object", "properties": {"images": files}}}
            else:
                made[media] = {"schema": BINARY}
        return made
