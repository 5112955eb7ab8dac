"""Spans of the gateway, as an OTLP collector gets them: OpenTelemetry's conventions for HTTP."""

import json
import socket
from contextlib import closing

import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from latentserve.client import Client
from tests.support.collector import FAST, PARENT, attributes, receive
from tests.support.http import Caller
from tests.support.processes import Server
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

MODEL = "/v1/models/one"
LATENTS = {"latents": [[0.0, 0.0, 0.0]]}


@pytest.fixture(scope="module")
def collector():
    kept, server = receive()
    yield kept
    server.stop(None).wait()


@pytest.fixture(scope="module")
def server(collector, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway-tracing")
    write_tiny(folder / "models" / "one", fails_above=10.0)
    options = ("--gateway-port", "0", "--http-port", "0", "--otlp-endpoint", collector.endpoint)
    with Server(folder / "models", folder / "log", *options, env=FAST) as running:
        yield running.wait_until_serving()


@pytest.fixture
def gateway(server):
    return Caller(server.gateway)


def span_of(collector, path):
    """The span of the only request to an address; its query makes it one of a kind."""

    def found():
        return [
            span
            for span in collector.spans()
            if attributes(span).get("url.path", "") + "?" + attributes(span).get("url.query", "")
            == path
        ]

    wait_until(found, collector.spans)
    (span,) = found()
    return span


def test_a_request_has_the_attributes_of_an_http_server(collector, gateway):
    path = f"{MODEL}:decode?unclipped=true"
    headers = {"traceparent": PARENT, "user-agent": "test/1", "x-request-id": "mine-1"}
    reply = gateway.ask("POST", path, LATENTS, {**headers, "accept": "application/json"})
    assert reply.status == 200
    span = span_of(collector, path)
    assert span.name == "POST /v1/models/{model}:decode"
    assert span.kind == Span.SPAN_KIND_SERVER
    assert span.trace_id.hex() == PARENT.split("-")[1]
    assert span.parent_span_id.hex() == PARENT.split("-")[2]
    assert span.status.code == Status.STATUS_CODE_UNSET
    found = attributes(span)
    host, port = gateway.address
    times = ("latentserve.queue_seconds", "latentserve.compute_seconds")
    assert all(found.pop(name) >= 0 for name in times)
    assert found.pop("network.peer.port") > 0
    assert found == {
        "http.request.method": "POST",
        "http.route": "/v1/models/{model}:decode",
        "http.response.status_code": 200,
        "url.path": f"{MODEL}:decode",
        "url.query": "unclipped=true",
        "url.scheme": "http",
        "network.protocol.version": "1.1",
        "network.peer.address": "127.0.0.1",
        "client.address": "127.0.0.1",
        "server.address": host,
        "server.port": port,
        "user_agent.original": "test/1",
        "latentserve.model": "one",
        "latentserve.version": 1,
        "latentserve.rows": 1,
        "latentserve.batch_rows": 1,
        "latentserve.request_id": "mine-1",
    }


@pytest.mark.parametrize(
    ("path", "route", "status"),
    [
        (f"{MODEL}:sample?count=0&seed=1", "/v1/models/{model}:sample", 400),
        (f"{MODEL}/versions/9:sample?count=1", "/v1/models/{model}/versions/{version}:sample", 404),
        (f"{MODEL}:encode?", "/v1/models/{model}:encode", 405),
        ("/v2/models/one.decode/ready?", "/v2/models/{name}/ready", 200),
        ("/nothing/here?", None, 404),
    ],
)
def test_the_callers_mistakes_are_no_errors(collector, gateway, path, route, status):
    assert gateway.get(path.removesuffix("?")).status == status
    span = span_of(collector, path)
    found = attributes(span)
    assert span.name == (f"GET {route}" if route else "GET")
    assert (found.get("http.route"), found["http.response.status_code"]) == (route, status)
    assert span.status.code == Status.STATUS_CODE_UNSET
    assert "error.type" not in found
    assert not [name for name in found if name.startswith("rpc.")]


def test_a_fault_of_the_server_is_an_error(collector, gateway):
    path = f"{MODEL}:decode?scaled=false"
    assert gateway.post(path, {"latents": [[99.0, 99.0, 99.0]]}).status == 500
    span = span_of(collector, path)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "500"


def test_a_deadline_that_passes_is_an_error(collector, gateway):
    path = f"{MODEL}:sample?count=1&seed=504"
    assert gateway.get(path, request_timeout="1e-9").status == 504
    span = span_of(collector, path)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["error.type"] == "504"


def test_a_reply_that_ends_early_is_an_error(collector, gateway):
    path = f"{MODEL}:decode_stream?tensors=lists"
    lines = "\n".join(map(json.dumps, (LATENTS, {"latents": [[1.0]]}))).encode()
    reply = gateway.post(path, lines, content_type="application/x-ndjson")
    assert reply.status == 200
    assert b'"error"' in reply.body
    span = span_of(collector, path)
    assert span.status.code == Status.STATUS_CODE_ERROR
    found = attributes(span)
    assert (found["http.response.status_code"], found["error.type"]) == (200, "INVALID_ARGUMENT")


def test_a_caller_that_leaves_is_cancelled(collector, gateway):
    path = f"{MODEL}:encode?draw=true"
    with closing(socket.create_connection(gateway.address, 30)) as sock:
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\ncontent-length: 99\r\n\r\n"
        sock.sendall(head.encode() + b"x")
    span = span_of(collector, path)
    found = attributes(span)
    assert found["error.type"] == "CANCELLED"
    assert "http.response.status_code" not in found


def test_an_unknown_method_does_not_name_the_span(collector, gateway):
    assert gateway.ask("BREW", "/v1/server?pot=1").status == 405
    span = span_of(collector, "/v1/server?pot=1")
    assert span.name == "HTTP /v1/server"
    found = attributes(span)
    assert found["http.request.method"] == "_OTHER"
    assert found["http.request.method_original"] == "BREW"


def test_long_texts_are_cut(collector, gateway):
    gateway.get(f"/v1/server?cut={'x' * 5000}")
    wait_until(lambda: [span for span in collector.spans() if "cut=x" in query_of(span)])
    (span,) = (span for span in collector.spans() if "cut=x" in query_of(span))
    assert len(query_of(span)) == 1024


def query_of(span):
    return attributes(span).get("url.query", "")


def test_probes_and_metrics_have_no_spans_and_grpc_keeps_its_own(collector, server, gateway):
    for path in ("/v2/health/live", "/v2/health/ready", "/v1/metrics"):
        assert gateway.get(path).status == 200
    with Client(server.target) as client:
        client.decode(np.zeros((1, 3), np.float32))
    wait_until(lambda: [span for span in collector.spans() if span.name.endswith("/Decode")])
    (span,) = (span for span in collector.spans() if span.name.endswith("/Decode"))
    assert attributes(span)["rpc.system"] == "grpc"
    assert not [name for name in attributes(span) if name.startswith(("http.", "url."))]
    paths = {attributes(span).get("url.path", "") for span in collector.spans()}
    assert not paths & {"/v2/health/live", "/v2/health/ready", "/v1/metrics"}
