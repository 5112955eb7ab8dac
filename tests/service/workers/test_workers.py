"""`serve --workers N`: several worker processes serve one port and reload together."""

import concurrent.futures
import os
import re
import signal
from pathlib import Path

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from service.net.addresses import free_addresses
from service.settings import read_settings
from service.workers.control import WorkerConfig
from tests.support.processes import TRANSPORTS, Server
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until
from tests.support.workers import Workers

# ------------------------------------------------------------------- serving


@pytest.mark.usefixtures("each_transport")
def test_all_workers_answer_on_one_port_and_share_one_metrics_page(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        calls = 0
        # With SO_REUSEPORT each connection goes to a random worker: 40 to one, once in 2**39.
        while calls < 40 or len(server.labels("latentserve_requests_total")) < 2:
            assert calls < 80
            with Client(server.target) as client:
                assert client.sample(2, seed=calls).shape == (2, 1, 4, 4)
            calls += 1
        assert len(server.pids()) == 2
        assert [server.http(path)[0] for path in ("/readyz", "/healthz")] == [200, 200]
        status, page = server.http("/metrics")
        assert status == 200
        for kind in ("HELP", "TYPE"):
            heads = re.findall(rf"^# {kind} (\S+)", page, re.MULTILINE)
            assert len(heads) == len(set(heads)) > 10
        samples = [
            sample for family in text_string_to_metric_families(page) for sample in family.samples
        ]
        assert {sample.labels.get("worker") for sample in samples} == {"0", "1", "supervisor"}
        sampled = [
            sample.value
            for sample in samples
            if sample.name == "latentserve_requests_total" and sample.labels["rpc"] == "Sample"
        ]
        assert sum(sampled) == calls
        assert server.served() == [["one/1"], ["one/1"]]
        assert '"worker": 1' in server.logged()


def sample_by_itself(server: Workers, seed: int) -> int:
    """Calls Sample over a connection of its own; gRPC's channels would share one."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
    with grpc.insecure_channel(server.target, options) as channel:
        sample = latent_service_pb2_grpc.LatentServiceStub(channel).Sample
        reply = sample(pb.SampleRequest(count=1, seed=seed), timeout=30)
        return reply.images.tensor.shape[0]


def test_connections_are_assigned_round_robin(folder, tmp_path):
    with Workers(folder, tmp_path / "log", workers=3) as server:
        for seed in range(12):
            assert sample_by_itself(server, seed) == 1
        page = server.http("/metrics")[1]
        pattern = (
            r'^latentserve_requests_total\{.*rpc="Sample",transport="grpc",worker="\d"\} (\S+)$'
        )
        assert list(map(float, re.findall(pattern, page, re.MULTILINE))) == [4.0, 4.0, 4.0]


def test_a_connection_not_acknowledged_by_a_dead_worker_goes_to_another(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        stuck = min(server.pids())
        os.kill(stuck, signal.SIGSTOP)
        before = open_files(server.process.pid)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(sample_by_itself, server, seed) for seed in range(4)]
            wait_until(lambda: sum(call.done() for call in calls) == 2)
            # Those of the stuck worker stay open in the supervisor until they are acknowledged.
            wait_until(lambda: open_files(server.process.pid) == before + 2)
            assert sum(call.done() for call in calls) == 2
            os.kill(stuck, signal.SIGKILL)
            assert [call.result(10) for call in calls] == [1] * 4


def open_files(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_the_merged_metrics_are_served_as_openmetrics_on_request(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        page = server.http("/metrics", "application/openmetrics-text; version=1.0.0")[1]
        assert page.endswith("# EOF\n")
        assert {"latentserve_batch_rows", "latentserve_model_info"} <= {
            family.name for family in openmetrics(page)
        }


def test_workers_serve_without_an_http_port(folder, tmp_path):
    with Server(folder, tmp_path / "log", "--workers", "2").wait_until_serving() as server:
        assert server.stop() == 0


def test_a_worker_config_survives_serialisation(folder):
    arguments = ["--versions", "1,one=2", "--models", str(folder), "--drain-seconds", "2.5"]
    config = WorkerConfig(addresses=("::1", "127.0.0.1"), settings=read_settings(arguments, {}))
    assert WorkerConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_addresses_of_a_host_name_are_served_by_workers(folder, tmp_path, transport):
    arguments = ("--host", "localhost", "--transport", transport)
    with Workers(folder, tmp_path / "log", *arguments) as server:
        port = server.target.rpartition(":")[2]
        for address in free_addresses("localhost", 0):
            shown = f"[{address}]" if ":" in address else address
            with Client(f"{shown}:{port}") as client:
                assert client.is_serving()


# ------------------------------------------------------------------- reloads


@pytest.mark.usefixtures("each_transport")
def test_sighup_and_the_reload_rpc_reach_all_workers(folder, tmp_path):
    with Workers(folder, tmp_path / "log", "--admin", workers=3) as server:
        write_tiny(folder / "one", seed=2)
        with Client(server.target) as client:
            reply = client.reload()
        # The call is answered once all workers have reloaded.
        assert [model.version for model in reply.added] == [2]
        assert server.served() == [["one/2"]] * 3
        write_tiny(folder / "two", seed=3)
        server.signal(signal.SIGHUP)
        wait_until(lambda: server.served() == [["one/2", "two/1"]] * 3, server.logged)


def test_concurrent_reloads_all_finish_and_reach_all_workers(folder, tmp_path):
    with Workers(folder, tmp_path / "log", "--admin") as server:

        def reload(_):
            with Client(server.target) as client:
                return client.reload()

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            for version in range(2, 6):
                write_tiny(folder / "one", seed=version)
                for reply in pool.map(reload, range(8)):
                    assert [model.version for model in reply.serving] == [version]
                assert server.served() == [[f"one/{version}"]] * 2


def test_a_worker_that_restarts_during_a_reload_serves_the_new_version(folder, tmp_path):
    with Workers(folder, tmp_path / "log", "--admin") as server:
        for version in (2, 3):
            write_tiny(folder / "one", seed=version)
            os.kill(min(server.pids()), signal.SIGKILL)
            with Client(server.target) as client:
                assert [model.version for model in client.reload().serving] == [version]
            wait_until(lambda: len(server.served()) == 2, server.logged)
            assert server.served() == [[f"one/{version}"]] * 2


def test_a_reload_does_not_wait_for_a_worker_that_dies(folder, tmp_path):
    with Workers(folder, tmp_path / "log", "--admin") as server, Client(server.target) as client:
        client.info()
        (answering,) = server.labels("latentserve_requests_total")
        (other,) = (pid for pid in server.pids() if number_of(pid) != answering)
        os.kill(other, signal.SIGSTOP)
        write_tiny(folder / "one", seed=2)
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reply = pool.submit(client.reload)
            # The answering worker has reloaded, and waits for the other one.
            wait_until(lambda: client.info().models[0].version == 2, server.logged)
            assert not reply.done()
            os.kill(other, signal.SIGKILL)
            assert [model.version for model in reply.result(10).serving] == [2]


def number_of(pid: int) -> str:
    """Number of the worker that a process is, from its arguments."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2]
