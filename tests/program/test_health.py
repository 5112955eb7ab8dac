"""The table of states, row by row, by gRPC health and by HTTP; and what /metrics counts."""

import contextlib
import os
import signal
import time
import urllib.error
import urllib.request

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentserve.client import Client, LatentserveError
from latentserve.v1 import latent_service_pb2 as pb
from tests.support.processes import Server
from tests.support.stubs import stub_of
from tests.support.tiny import write_tiny

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "latentserve.v1.LatentService"
WITH_HTTP = ("--http-port", "0")


class Watched(Server):
    """A server that is looked at from both sides."""

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
        """Whether `""` serves, the service serves, it is ready and it is live."""
        return (
            self.health() == SERVING,
            self.health(SERVICE) == SERVING,
            self.http("/readyz") == 200,
            self.http("/healthz") == 200,
        )

    def wait_for(self, state: tuple[bool, bool, bool, bool]) -> None:
        deadline = time.monotonic() + 30
        while self.state() != state:
            assert time.monotonic() < deadline, (self.state(), self.log.read_text())
            time.sleep(0.02)


WELL = (True, True, True, True)
NOT_READY = (False, False, False, True)
DEAD = (False, False, False, False)


def test_while_it_loads_it_is_live_and_not_ready_and_then_ready(tmp_path):
    for name in "abcdef":
        write_tiny(tmp_path / "models" / name, shape=(3, 64, 64), dim=200)
    with Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP) as server:
        assert server.state() == NOT_READY
        assert server.health(SERVICE) == NOT_SERVING
        server.wait_for(WELL)
        assert server.health(f"{SERVICE}/f") == SERVING


def test_nothing_that_can_be_loaded_is_live_and_not_ready(tmp_path):
    write_tiny(tmp_path / "models" / "bad", golden_error=1.0)
    with Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP) as server:
        deadline = time.monotonic() + 30
        while "serving nothing" not in server.log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.state() == NOT_READY
        assert server.health(f"{SERVICE}/bad") == NOT_SERVING


@pytest.mark.usefixtures("each_transport")
def test_a_reload_and_a_refused_version_leave_it_serving(tmp_path):
    write_tiny(tmp_path / "models" / "one", seed=1)
    arguments = (*WITH_HTTP, "--admin")
    with (
        Watched(tmp_path / "models", tmp_path / "log", *arguments) as server,
        Client(server.target) as client,
    ):
        server.wait_for(WELL)
        write_tiny(tmp_path / "models" / "one", seed=2, golden_error=1.0)
        assert client.reload().refused[0].version == 2
        assert server.state() == WELL
        assert server.health(f"{SERVICE}/one") == SERVING
        assert metrics(server)["latentserve_model_refused", (("model", "one"),)] == 1


@pytest.mark.usefixtures("each_transport")
def test_draining_it_is_live_and_not_serving_until_what_runs_has_ended(models, tmp_path):
    with Watched(models, tmp_path / "log", *WITH_HTTP) as server:
        server.wait_for(WELL)
        with stub_of(server.target) as stub, grpc.insecure_channel(server.target) as channel:
            watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
            assert next(watch).status == SERVING
            # Nobody reads it, so it is in flight for as long as that is wanted.
            request = pb.SampleRequest(count=40_000, seed=1)
            stream = stub.SampleStream(pb.SampleStreamRequest(request=request, chunk_rows=4000))
            first = next(stream)
            os.kill(server.process.pid, signal.SIGTERM)
            assert next(watch).status == NOT_SERVING
            assert (server.http("/healthz"), server.http("/readyz")) == (200, 503)
            assert server.process.poll() is None
            rows = [first, *stream]
        assert sum(each.response.images.tensor.shape[0] for each in rows) == 40_000
        assert server.process.wait(30) == 0


def test_a_lost_device_is_neither_ready_nor_live(tmp_path):
    write_tiny(tmp_path / "models" / "fails", fails_above=10.0)
    program = "tests.support.lost_device"
    with (
        Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP, program=program) as server,
        Client(server.target) as client,
    ):
        server.wait_for(WELL)
        with pytest.raises(LatentserveError):
            client.decode(np.full((3, 3), 99, np.float32))
        server.wait_for(DEAD)
        assert server.health(f"{SERVICE}/fails") == NOT_SERVING
        assert "is lost, wanted a restart: CUDA error 719" in server.log.read_text()


def test_a_graph_that_fails_on_a_device_that_works_changes_nothing(tmp_path):
    write_tiny(tmp_path / "models" / "fails", fails_above=10.0)
    with (
        Watched(tmp_path / "models", tmp_path / "log", *WITH_HTTP) as server,
        Client(server.target) as client,
    ):
        server.wait_for(WELL)
        with pytest.raises(LatentserveError):
            client.decode(np.full((3, 3), 99, np.float32))
        time.sleep(0.3)
        assert server.state() == WELL


# -------------------------------------------------------------------- metrics


def metrics(server: Watched) -> dict:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for sample in server.samples()
    }


@pytest.mark.usefixtures("each_transport")
def test_calls_of_a_real_server_are_counted(models, tmp_path):
    with (
        Watched(models, tmp_path / "log", *WITH_HTTP) as server,
        Client(server.target) as client,
    ):
        server.wait_for(WELL)
        digits = client.sample(100, seed=1)
        client.encode(digits)
        list(client.sample_stream(50, seed=1, chunk_rows=20))
        for call in (lambda: client.sample(1, model="nope"), lambda: client.traverse(99)):
            with contextlib.suppress(LatentserveError):
                call()
        found = metrics(server)

    def value(name, **labels):
        return found[name, tuple(sorted(labels.items()))]

    total = "latentserve_requests_total"
    assert value(total, rpc="Sample", model="mnist", code="OK") == 1
    assert value(total, rpc="Encode", model="mnist", code="OK") == 1
    assert value(total, rpc="SampleStream", model="mnist", code="OK") == 1
    assert value(total, rpc="Traverse", model="mnist", code="INVALID_ARGUMENT") == 1
    # What a caller made up is no label.
    assert value(total, rpc="GetModel", model="", code="NOT_FOUND") == 1
    assert not [labels for _, labels in found if ("model", "nope") in labels]
    assert value("latentserve_request_seconds_count", rpc="Encode") == 1
    # Sample's 100 rows are one batch or several, by how fast this machine was when it loaded.
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
