"""Readiness and liveness in each state, by gRPC health and by HTTP; metrics of real calls."""

import contextlib
import os
import signal
import threading
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentserve.client import Client, LatentserveError
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.processes import Server, free_port
from tests.support.stubs import stub_of
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "latentserve.v1.LatentService"
WITH_HTTP = ("--http-port", "0")


class Watched(Server):
    """A server whose health is read over gRPC and over HTTP."""

    def health(self, name: str = "") -> int:
        with grpc.insecure_channel(self.target) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status

    def http(self, path: str) -> int:
        try:
            with urllib.request.urlopen(self.origin + path, timeout=10) as reply:
                return reply.status
        except urllib.error.HTTPError as error:
            with error:
                return error.code

    def state(self) -> tuple[bool, bool, bool, bool]:
        """Whether health is SERVING of `""`, of the service; whether /readyz, /healthz are 200."""
        return (
            self.health() == SERVING,
            self.health(SERVICE) == SERVING,
            self.http("/readyz") == 200,
            self.http("/healthz") == 200,
        )

    def wait_for(self, state: tuple[bool, bool, bool, bool]) -> None:
        wait_until(lambda: self.state() == state, lambda: (self.state(), self.log.read_text()))


HEALTHY = (True, True, True, True)
NOT_READY = (False, False, False, True)
NOT_LIVE = (False, False, False, False)


def test_a_loading_server_is_live_and_not_ready_until_it_has_loaded(tmp_path):
    for name in "ab":
        write_tiny(tmp_path / "models" / name, shape=(3, 64, 64), dim=200)
    port = free_port()
    seen = []

    def probe() -> None:
        while not seen or seen[-1] != (200, 200):
            codes = []
            for path in ("healthz", "readyz"):
                try:
                    with urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}") as reply:
                        codes.append(reply.status)
                except urllib.error.HTTPError as error:
                    with error:
                        codes.append(error.code)
                except OSError:
                    break  # not started
            if len(codes) == 2:
                seen.append(tuple(codes))
            time.sleep(0.01)

    probing = threading.Thread(target=probe)
    probing.start()
    with Watched(tmp_path / "models", tmp_path / "log", "--http-port", str(port)) as server:
        server.wait_for(HEALTHY)
        assert server.health(f"{SERVICE}/b") == SERVING
        probing.join(10)
    assert set(seen) == {(200, 503), (200, 200)}


def test_a_server_without_a_loadable_model_is_live_and_not_ready(tmp_path):
    write_tiny(tmp_path / "models" / "bad", golden_error=1.0)
    with Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP) as server:
        wait_until(lambda: "serving nothing" in server.log.read_text())
        assert server.state() == NOT_READY
        assert server.health(f"{SERVICE}/bad") == NOT_SERVING


@pytest.mark.usefixtures("each_transport")
def test_a_refused_version_in_a_reload_leaves_the_server_ready(tmp_path):
    write_tiny(tmp_path / "models" / "one", seed=1)
    arguments = (*WITH_HTTP, "--admin")
    with (
        Watched(tmp_path / "models", tmp_path / "log", *arguments) as server,
        Client(server.target) as client,
    ):
        server.wait_for(HEALTHY)
        write_tiny(tmp_path / "models" / "one", seed=2, golden_error=1.0)
        assert client.reload().refused[0].version == 2
        assert server.state() == HEALTHY
        assert server.health(f"{SERVICE}/one") == SERVING
        assert metrics(server)["latentserve_model_refused", (("model", "one"),)] == 1


@pytest.mark.usefixtures("each_transport")
def test_a_draining_server_is_live_and_not_serving_until_its_calls_have_ended(models, tmp_path):
    with Watched(models, tmp_path / "log", *WITH_HTTP) as server:
        server.wait_for(HEALTHY)
        with stub_of(server.target) as stub, grpc.insecure_channel(server.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            # Flow control keeps the stream in flight until it is read.
            request = pb.SampleRequest(count=40_000, seed=1)
            stream = stub.SampleStream(pb.SampleStreamRequest(request=request, chunk_rows=4000))
            first = next(stream)
            os.kill(server.process.pid, signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            assert (server.http("/healthz"), server.http("/readyz")) == (200, 503)
            assert server.process.poll() is None
            replies = [first, *stream]
        assert sum(reply.response.images.tensor.shape[0] for reply in replies) == 40_000
        assert server.process.wait(30) == 0


def test_a_server_whose_device_is_lost_is_neither_ready_nor_live(tmp_path):
    write_tiny(tmp_path / "models" / "fails", fails_above=10.0)
    program = "tests.support.lost_device"
    with (
        Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP, program=program) as server,
        Client(server.target) as client,
    ):
        server.wait_for(HEALTHY)
        with pytest.raises(LatentserveError):
            client.decode(np.full((3, 3), 99, np.float32))
        server.wait_for(NOT_LIVE)
        assert server.health(f"{SERVICE}/fails") == NOT_SERVING
        assert "is lost, wanted a restart: CUDA error 719" in server.log.read_text()


def test_a_graph_error_on_a_working_device_changes_neither_readiness_nor_liveness(tmp_path):
    write_tiny(tmp_path / "models" / "fails", fails_above=10.0)
    with (
        Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP) as server,
        Client(server.target) as client,
    ):
        server.wait_for(HEALTHY)
        with pytest.raises(LatentserveError):
            client.decode(np.full((3, 3), 99, np.float32))
        # Also after the probe of the device, which the error has started in a thread.
        for _ in range(5):
            assert server.state() == HEALTHY


# -------------------------------------------------------------------- metrics


def metrics(server: Watched) -> dict:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for sample in server.samples()
    }


@pytest.mark.usefixtures("each_transport")
def test_the_metrics_of_a_running_server_count_its_calls(models, tmp_path):
    with (
        Watched(models, tmp_path / "log", *WITH_HTTP) as server,
        Client(server.target) as client,
    ):
        server.wait_for(HEALTHY)
        digits = client.sample(100, seed=1)
        client.encode(digits)
        list(client.sample_stream(50, seed=1, chunk_rows=20))
        for call in (lambda: client.sample(1, model="nope"), lambda: client.traverse(99)):
            with contextlib.suppress(LatentserveError):
                call()
        found = metrics(server)

    def value(name, **labels):
        if "rpc" in labels:
            labels["transport"] = "grpc"
        return found[name, tuple(sorted(labels.items()))]

    total = "latentserve_requests_total"
    assert value(total, rpc="Sample", model="mnist", code="OK") == 1
    assert value(total, rpc="Encode", model="mnist", code="OK") == 1
    assert value(total, rpc="SampleStream", model="mnist", code="OK") == 1
    assert value(total, rpc="Traverse", model="mnist", code="INVALID_ARGUMENT") == 1
    # A name that a caller made up does not become a label.
    assert value(total, rpc="GetModel", model="", code="NOT_FOUND") == 1
    assert not [labels for _, labels in found if ("model", "nope") in labels]
    assert value("latentserve_request_seconds_count", rpc="Encode") == 1
    # Sample's 100 rows are one batch or several, as calibrated on this machine.
    batches = value("latentserve_compute_seconds_count", graph="decoder", device="cpu")
    assert batches >= 1 + 3
    batches += value("latentserve_compute_seconds_count", graph="encoder", device="cpu")
    assert batches == value("latentserve_batch_rows_count")
    assert value("latentserve_batch_rows_sum") == 100 + 100 + 50
    assert value("latentserve_queue_rows") == 0
    assert value("latentserve_model_info", model="mnist", version="1", device="cpu") == 1
    mean = [
        value("latentserve_latent_mean", model="mnist", version="1", dim=str(dim))
        for dim in range(32)
    ]
    assert np.isfinite(mean).all()
    assert np.abs(mean).max() > 0
    kl = [name for name, _ in found if name == "latentserve_latent_kl_nats"]
    assert len(kl) == 32
