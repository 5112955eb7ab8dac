"""Two ASGI applications for pyvoy, which runs Envoy's HTTP/2 in process.

`echo` answers every call with the bytes of the request. `ours` answers with latentserve's servicer,
but without its handling of deadlines, access tokens, metrics and errors. Its cost is therefore a
lower bound for latentserve on this transport.
"""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import MappingProxyType
from typing import Any

from bundle import open_bundle
from common.cpus import usable_cpus
from latentserve.v1 import latent_service_pb2 as pb
from service.api.servicer import Servicer
from service.api.wire import serialized
from service.engine.admission import Admission
from service.engine.call import Call
from service.engine.engine import Engine
from service.models.model import load_model
from service.models.onnx import resolve_device
from service.models.repository import Models
from service.observe.metrics import Metrics
from service.observe.telemetry import Telemetry
from service.settings import Settings

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

_HEADERS = [(b"content-type", b"application/grpc")]
_PREFIX = 5
_servicer: Servicer | None = None


async def echo(_scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """ASGI application that answers with the bytes of the request."""
    await _answer(await _body(receive), send)


async def ours(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    """ASGI application that answers Encode and Decode with latentserve's servicer."""
    servicer = _servicer or _start()
    message = (await _body(receive))[_PREFIX:]
    reply: Any
    if scope["path"].endswith("/Encode"):
        reply = await servicer.encode(pb.EncodeRequest.FromString(message), Call())
    else:
        reply = await servicer.decode(pb.DecodeRequest.FromString(message), Call())
    whole = b"".join(serialized(reply))
    await _answer(b"\0" + len(whole).to_bytes(4, "big") + whole, send)


def _start() -> Servicer:
    global _servicer
    settings = Settings()
    telemetry = Telemetry(Metrics(), None, lambda _graph, error: print(error))
    engine = Engine(
        Admission(settings.max_queue_rows, settings.queue_bytes), telemetry, usable_cpus()
    )
    bundle = open_bundle(Path(os.environ["BENCHMARK_BUNDLE"]))
    model = load_model(bundle, resolve_device("cpu"), 1)
    models = Models(
        model.manifest.name,
        MappingProxyType({model.manifest.name: MappingProxyType({model.manifest.version: model})}),
    )
    _servicer = Servicer(engine, lambda: models, settings)
    return _servicer


async def _body(receive: Receive) -> bytes:
    chunks = []
    while True:
        event = await receive()
        chunks.append(event.get("body", b""))
        if not event.get("more_body"):
            return b"".join(chunks)


async def _answer(body: bytes, send: Send) -> None:
    start = {"type": "http.response.start", "status": 200, "headers": _HEADERS, "trailers": True}
    await send(start)
    await send({"type": "http.response.body", "body": body})
    await send({"type": "http.response.trailers", "headers": [(b"grpc-status", b"0")]})
