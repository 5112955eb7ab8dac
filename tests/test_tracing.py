"""Traces of a real server, as a real OTLP receiver gets them."""

import concurrent.futures
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from tests.processes import Server
from tests.tiny import write_tiny

PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
FAST = {"OTEL_BSP_SCHEDULE_DELAY": "50"}


class Receiver(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps what it gets."""

    def __init__(self):
        self.requests = []

    def Export(self, request, _context):  # noqa: N802
        self.requests.append(request)
        return trace_service_pb2.ExportTraceServiceResponse()

    def spans(self):
        return [
            span
            for request in list(self.requests)
            for resource in request.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        ]

    def wait_for(self, count):
        deadline = time.monotonic() + 20
        while len(self.spans()) < count:
            assert time.monotonic() < deadline, self.spans()
            time.sleep(0.02)
        return self.spans()


@pytest.fixture
def receiver():
    kept = Receiver()
    server = grpc.server(concurrent.futures.ThreadPoolExecutor(2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)
    kept.port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept
    server.stop(None).wait()


@pytest.fixture
def models(tmp_path):
    write_tiny(tmp_path / "models" / "one")
    return tmp_path / "models"


def attributes(span):
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in span.attributes
    }


def test_each_call_is_a_span_under_its_callers(receiver, models, tmp_path):
    endpoint = f"http://127.0.0.1:{receiver.port}"
    with (
        Server(models, tmp_path / "log", "--otlp-endpoint", endpoint, env=FAST) as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        server.wait_until_serving()
        stub = latent_service_pb2_grpc.LatentServiceStub(channel)
        metadata = (("traceparent", PARENT), ("x-request-id", "mine-1"))
        stub.Sample(pb.SampleRequest(count=3), metadata=metadata)
        with pytest.raises(grpc.RpcError):
            stub.Sample(pb.SampleRequest(count=-1))
        good, bad = receiver.wait_for(2)
    assert good.name == "latentserve.v1.LatentService/Sample"
    assert good.kind == Span.SPAN_KIND_SERVER
    assert good.trace_id.hex() == PARENT.split("-")[1]
    assert good.parent_span_id.hex() == PARENT.split("-")[2]
    found = attributes(good)
    assert (found["rpc.system"], found["rpc.method"]) == ("grpc", "Sample")
    assert (found["latentserve.model"], found["latentserve.version"]) == ("one", 1)
    assert (found["latentserve.rows"], found["latentserve.batch_rows"]) == (3, 3)
    assert found["latentserve.request_id"] == "mine-1"
    assert found["latentserve.compute_seconds"] > 0
    assert attributes(bad)["rpc.grpc.status_code"] == "INVALID_ARGUMENT"
    # The caller is to blame, not the server.
    assert bad.status.code == Status.STATUS_CODE_UNSET
    resource = receiver.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "latentserve"
    # Health was asked many times meanwhile.
    assert {span.name for span in receiver.spans()} == {good.name}


def test_what_is_left_is_sent_at_the_end(receiver, models, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{receiver.port}",
           "OTEL_SERVICE_NAME": "digits"}  # fmt: skip
    with Server(models, tmp_path / "log", env=env) as server:
        server.wait_until_serving()
        with Client(server.target) as client:
            client.decode(np.zeros((2, 3), np.float32))
        assert server.stop() == 0
    names = {span.name.rpartition("/")[2] for span in receiver.spans()}
    assert "Decode" in names
    resource = receiver.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "digits"


def test_a_bug_is_an_error_in_the_trace(receiver, tmp_path):
    write_tiny(tmp_path / "models" / "fails", only_batches_of_4=True)
    endpoint = f"http://127.0.0.1:{receiver.port}"
    arguments = ("--otlp-endpoint", endpoint)
    with Server(tmp_path / "models", tmp_path / "log", *arguments, env=FAST) as server:
        server.wait_until_serving()
        with grpc.insecure_channel(server.target) as channel, pytest.raises(grpc.RpcError):
            latent_service_pb2_grpc.LatentServiceStub(channel).Sample(pb.SampleRequest(count=3))
        (span,) = receiver.wait_for(1)
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["rpc.grpc.status_code"] == "INTERNAL"


def test_a_collector_that_is_away_costs_nothing_and_says_nothing(models, tmp_path):
    arguments = ("--otlp-endpoint", "http://127.0.0.1:9")
    with Server(models, tmp_path / "log", *arguments, env=FAST) as server:
        server.wait_until_serving()
        with Client(server.target) as client:
            began = time.monotonic()
            for _ in range(50):
                client.decode(np.zeros((2, 3), np.float32))
            assert time.monotonic() - began < 5
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 15
        assert "opentelemetry" not in server.log.read_text()


def test_without_an_endpoint_nothing_of_it_is_imported():
    code = (
        "import sys; import service.server; from service.tracing import Tracing; "
        "assert Tracing.start('') is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
