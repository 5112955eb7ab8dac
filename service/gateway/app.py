"""The application of the gateway: its routes."""

from collections.abc import Awaitable, Callable
from functools import partial
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.convertors import Convertor, register_url_convertor
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from service.gateway.calls import Calls
from service.gateway.diffusers.endpoints import RemoteVae
from service.gateway.exchange import http_problem
from service.gateway.inference.endpoints import InferenceRoutes
from service.gateway.operations import OPERATIONS, STREAMS
from service.gateway.origins import Origins
from service.gateway.pages import explorer, pages
from service.gateway.streams import Streams
from service.settings import Settings


class _Model(Convertor[str]):
    """A model's name in a path, which an operation may follow."""

    regex = "[^/:]+"

    def convert(self, value: str) -> str:
        return value

    def to_string(self, value: str) -> str:
        return value


class _Version(Convertor[int]):
    """A version in a path. One of more digits than int() reads is a path that there is not."""

    regex = "[0-9]{1,100}"

    def convert(self, value: str) -> int:
        return int(value)

    def to_string(self, value: int) -> str:
        return str(value)


register_url_convertor("model", _Model())
register_url_convertor("version", _Version())

Endpoint = Callable[[Request], Awaitable[Response]]

#: Paths of descriptions, and the methods of LatentService that answer them.
DESCRIPTIONS = {
    "/v1/server": "GetServerInfo",
    "/v1/models": "ListModels",
    "/v1/models/{model:model}:latent_map": "GetLatentMap",
    "/v1/models/{model:model}/versions/{version:version}:latent_map": "GetLatentMap",
    "/v1/models/{model:model}/versions/{version:version}": "GetModel",
    "/v1/models/{model:model}": "GetModel",
}
# Headers of replies that pages of other origins may read.
_EXPOSED = [
    "Dtype", "ETag", "Inference-Header-Content-Length", "Retry-After", "Shape", "X-Model",
    "X-Request-Id", "X-Seed",
]  # fmt: skip
_ACCEPTED = [
    "Authorization", "Content-Type", "Inference-Header-Content-Length", "Request-Timeout",
    "Traceparent", "X-Request-Id",
]  # fmt: skip


def routes(
    calls: Calls,
    streams: Streams,
    inference: InferenceRoutes,
    vae: RemoteVae,
    metrics: Endpoint,
) -> list[Route]:
    """Returns all routes; `/openapi.json` describes the same ones.

    Args:
        calls: Answers requests by calls of one reply.
        streams: Answers requests by streaming calls.
        inference: Answers those of the Open Inference Protocol.
        vae: Answers those of diffusers.
        metrics: Answers `/v1/metrics`.
    """
    found = [Route("/v1/metrics", metrics, methods=["GET"]), *pages(), *inference.routes()]
    for operation in OPERATIONS:
        found += _of_model(operation.name, operation.gettable, calls.operate, operation)
    for operation in STREAMS:
        found += _of_model(operation.name, operation.gettable, streams.operate, operation)
    for version in ("", "/versions/{version:version}"):
        for name, endpoint in (("decode", vae.decode), ("encode", vae.encode)):
            path = f"/diffusers/{{model}}{version}/{name}"
            found.append(Route(path, endpoint, methods=["POST"]))
    for path, rpc in DESCRIPTIONS.items():
        found.append(Route(path, partial(calls.describe, name=rpc), methods=["GET"]))
    return found


def application(routes: list[Route], settings: Settings, grpc_port: int) -> ASGIApp:
    """Returns the application.

    Args:
        routes: Its routes, to which those of the explorer are added.
        settings: Who may call.
        grpc_port: Port of gRPC, for the calls that the explorer shows.
    """
    app = Starlette(
        routes=[*routes, *explorer(grpc_port)],
        exception_handlers={HTTPException: _http_error, Exception: _failure},
        middleware=[],
    )
    # A slash too many is an error, and not another address.
    app.router.redirect_slashes = False
    served: ASGIApp = app
    if settings.cors_origin:
        served = CORSMiddleware(
            app,
            allow_origins=settings.cors_origin,
            allow_methods=["GET", "POST"],
            allow_headers=_ACCEPTED,
            expose_headers=_EXPOSED,
        )
    return Origins(served, settings.cors_origin, settings.gateway_hosts)


def _of_model(name: str, gettable: bool, operate: Any, operation: Any) -> list[Route]:
    methods = ["GET", "POST"] if gettable else ["POST"]
    return [
        Route(f"/v1/models/{{model:model}}{version}:{name}", endpoint, methods=methods)
        for version in ("", "/versions/{version:version}")
        for endpoint in (partial(operate, operation=operation),)
    ]


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED and request.method == "OPTIONS":
        return Response(status_code=HTTPStatus.NO_CONTENT, headers=error.headers)
    if error.status_code == HTTPStatus.NOT_FOUND:
        error.detail = f"nothing at {request.url.path[:100]} (see /openapi.json)"
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        error.detail = f"method: got {request.method}, wanted {allowed}"
    return http_problem(error)


async def _failure(_request: Request, _error: Exception) -> Response:
    # Starlette raises the error again, and uvicorn logs it.
    return http_problem(HTTPException(500, "internal error"))
