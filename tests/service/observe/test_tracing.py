"""Traces as an OTLP receiver gets them: of the module alone, and of a running server."""

import logging
import socket
import statistics
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status

from latentserve.client import Client, InternalError
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from service.errors import StartError
from service.observe import tracing as service_tracing
from service.observe.tracing import Tracing
from tests.support.collector import FAST, PARENT, attributes, receive
from tests.support.processes import Server
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until


@pytest.fixture
def receiver():
    kept, server = receive()
    yield kept
    server.stop(None).wait()


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in ("OTEL_SERVICE_NAME", "OTEL_RESOURCE_ATTRIBUTES", *service_tracing._VARIABLES):
        monkeypatch.delenv(name, raising=False)
    # `Tracing.start` sets it; another test may want to see the log of the SDK.
    quiet = logging.getLogger("opentelemetry")
    level = quiet.level
    yield
    quiet.setLevel(level)


@pytest.fixture
def models(tmp_path):
    write_tiny(tmp_path / "models" / "one")
    return tmp_path / "models"


# ------------------------------------------------------------- without a server


def test_a_span_carries_the_attributes_of_its_call(receiver):
    tracing = Tracing.start(receiver.endpoint)
    with tracing.call("Sample", {"traceparent": PARENT, "tracestate": "a=1"}) as span:
        span.set(model="mnist", version=2, rows=7, queue_seconds=0.25)
    tracing.close()
    (got,) = receiver.spans()
    assert got.name == "latentserve.v1.LatentService/Sample"
    assert got.kind == Span.SPAN_KIND_SERVER
    assert got.trace_id.hex() == PARENT.split("-")[1]
    assert got.parent_span_id.hex() == PARENT.split("-")[2]
    assert got.trace_state == "a=1"
    assert attributes(got) == {
        "rpc.system": "grpc",
        "rpc.service": "latentserve.v1.LatentService",
        "rpc.method": "Sample",
        "rpc.grpc.status_code": 0,
        "rpc.response.status_code": "OK",
        "latentserve.model": "mnist",
        "latentserve.version": 2,
        "latentserve.rows": 7,
        "latentserve.queue_seconds": 0.25,
    }
    assert got.status.code == Status.STATUS_CODE_UNSET
    assert got.end_time_unix_nano >= got.start_time_unix_nano > 0


@pytest.mark.parametrize("variable", ["", *service_tracing._VARIABLES])
def test_a_collector_on_this_machine_gets_spans_without_a_proxy(receiver, monkeypatch, variable):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    if variable:
        monkeypatch.setenv(variable, receiver.endpoint)
    tracing = Tracing.start("" if variable else receiver.endpoint)
    with tracing.call("Sample", {}):
        pass
    tracing.close()
    assert len(receiver.spans()) == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [(code.name, code is grpc.StatusCode.INTERNAL) for code in grpc.StatusCode],
)
def test_each_status_code_is_exported_by_number_and_by_name(receiver, name, error):
    tracing = Tracing.start(receiver.endpoint)
    with tracing.call("Encode", {}) as span:
        span.failed(name, error=error)
    tracing.close()
    (got,) = receiver.spans()
    found = attributes(got)
    assert found["rpc.grpc.status_code"] == grpc.StatusCode[name].value[0]
    assert found["rpc.response.status_code"] == name
    assert got.status.code == (Status.STATUS_CODE_ERROR if error else Status.STATUS_CODE_UNSET)


def test_a_call_that_raises_ends_its_span_without_the_exceptions_text(receiver):
    tracing = Tracing.start(receiver.endpoint)
    with pytest.raises(ZeroDivisionError), tracing.call("Encode", {}):
        _ = 1 / 0
    tracing.close()
    (got,) = receiver.spans()
    # Its text may hold the caller's data, so it is only logged.
    assert not got.events


@pytest.mark.parametrize(
    "metadata", [{}, {"traceparent": ""}, {"traceparent": "nonsense"}, {"traceparent": "0" * 9999}]
)
def test_a_span_without_a_valid_parent_is_a_root(receiver, metadata):
    tracing = Tracing.start(receiver.endpoint)
    with tracing.call("Encode", metadata):
        pass
    tracing.close()
    (got,) = receiver.spans()
    assert not got.parent_span_id


def test_an_unsampled_parent_is_respected(receiver):
    tracing = Tracing.start(receiver.endpoint)
    with tracing.call("Encode", {"traceparent": PARENT[:-2] + "00"}) as span:
        span.set(rows=1)
    tracing.close()
    assert not receiver.spans()


def test_a_reload_span_names_the_admin_service(receiver):
    tracing = Tracing.start(receiver.endpoint)
    with tracing.call("Reload", {}):
        pass
    tracing.close()
    (got,) = receiver.spans()
    assert got.name == "latentserve.v1.AdminService/Reload"


@pytest.mark.parametrize(
    ("variables", "wanted"),
    [
        ({}, "latentserve"),
        ({"OTEL_SERVICE_NAME": "digits"}, "digits"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=faces,zone=a"}, "faces"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "zone=a"}, "latentserve"),
    ],
)
def test_the_service_name_is_latentserve_unless_an_operator_sets_one(
    receiver, monkeypatch, variables, wanted
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing = Tracing.start(receiver.endpoint)
    with tracing.call("Encode", {}):
        pass
    tracing.close()
    found = attributes(receiver.requests[0].resource_spans[0].resource)
    assert found["service.name"] == wanted
    assert found["service.version"]
    assert ("zone" in found) == ("OTEL_RESOURCE_ATTRIBUTES" in variables)


@pytest.mark.parametrize("endpoint", ["localhost:4317", "grpc://localhost:4317", "4317"])
def test_an_invalid_endpoint_is_refused(endpoint):
    with pytest.raises(StartError, match=r"otlp-endpoint: got '.*', wanted http://HOST:PORT"):
        Tracing.start(endpoint)


def test_an_invalid_otel_variable_is_refused_at_start(receiver, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "brotli")
    with pytest.raises(StartError, match=r"otlp-endpoint, or an OTEL_ variable: .*brotli"):
        Tracing.start(receiver.endpoint)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_an_unreachable_collector_is_logged_once_and_so_is_its_return(monkeypatch, caplog):
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    monkeypatch.setattr(service_tracing, "_EXPORT_SECONDS", 0.3)
    port = free_port()
    tracing = Tracing.start(f"http://127.0.0.1:{port}")
    caplog.set_level(logging.INFO)

    def logged():
        return [(record.levelname, record.name) for record in caplog.records]

    def trace_until(done):
        def traced():
            began = time.monotonic()
            with tracing.call("Encode", {}) as span:
                span.set(rows=1)
            took.append(time.monotonic() - began)
            return done()

        wait_until(traced)

    took, failures = [], []
    real = service_tracing._ReportingExporter.export

    def counted(self, spans):
        result = real(self, spans)
        if result.name != "SUCCESS":
            failures.append(result)
        return result

    monkeypatch.setattr(service_tracing._ReportingExporter, "export", counted)
    trace_until(lambda: len(failures) >= 3)
    assert logged() == [("WARNING", "service.observe.tracing")]
    kept, server = receive(port)
    try:
        trace_until(kept.spans)
        trace_until(lambda: len(logged()) == 2)
        assert statistics.median(took) < 0.05
        assert logged()[1] == ("INFO", "service.observe.tracing")
    finally:
        tracing.close()
        server.stop(None).wait()


def test_a_collector_that_never_answers_does_not_delay_closing(monkeypatch):
    monkeypatch.setattr(service_tracing, "_FLUSH_SECONDS", 0.5)
    with socket.socket() as silent:  # accepts connections and never answers
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        tracing = Tracing.start(f"http://127.0.0.1:{silent.getsockname()[1]}")
        for _ in range(3000):  # more than the SDK's queue holds
            with tracing.call("Encode", {}):
                pass
        began = time.monotonic()
        tracing.close()
        assert time.monotonic() - began < 3


def test_tracing_raises_no_warnings():
    code = (
        "from service.observe.tracing import Tracing; tracing = Tracing.start('http://127.0.0.1:9')\n"
        "with tracing.call('Encode', {}): pass\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


# ---------------------------------------------------------------- with a server


def test_each_call_is_a_child_of_its_callers_span(receiver, models, tmp_path):
    endpoint = receiver.endpoint
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
    assert attributes(bad)["rpc.response.status_code"] == "INVALID_ARGUMENT"
    # An invalid argument is the caller's error, not the server's.
    assert bad.status.code == Status.STATUS_CODE_UNSET
    resource = receiver.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "latentserve"
    # The many health checks of the start are not traced.
    assert {span.name for span in receiver.spans()} == {good.name}


def test_pending_spans_are_flushed_on_shutdown(receiver, models, tmp_path):
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": receiver.endpoint, "OTEL_SERVICE_NAME": "digits"}
    with Server(models, tmp_path / "log", env=env) as server:
        server.wait_until_serving()
        with Client(server.target) as client:
            client.decode(np.zeros((2, 3), np.float32))
        assert server.stop() == 0
    names = {span.name.rpartition("/")[2] for span in receiver.spans()}
    assert "Decode" in names
    resource = receiver.requests[0].resource_spans[0].resource
    assert attributes(resource)["service.name"] == "digits"


def test_an_internal_error_is_an_error_in_the_trace(receiver, tmp_path):
    write_tiny(tmp_path / "models" / "fails", fails_above=10.0)
    arguments = ("--otlp-endpoint", receiver.endpoint)
    with Server(tmp_path / "models", tmp_path / "log", *arguments, env=FAST) as server:
        server.wait_until_serving()
        with Client(server.target) as client, pytest.raises(InternalError):
            client.decode(np.full((1, 3), 99, np.float32))
        (span,) = (span for span in receiver.wait_for(2) if span.name.endswith("/Decode"))
    assert span.status.code == Status.STATUS_CODE_ERROR
    assert attributes(span)["rpc.response.status_code"] == "INTERNAL"


def test_an_unreachable_collector_neither_slows_calls_nor_floods_the_log(models, tmp_path):
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
        log = server.log.read_text()
        assert "opentelemetry" not in log
        assert log.count("service.observe.tracing") <= 1


def test_without_an_endpoint_opentelemetry_is_not_imported():
    code = (
        "import sys; import service.server; from service.observe.tracing import Tracing; "
        "assert Tracing.start('') is None; "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "[]"
