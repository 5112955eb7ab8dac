"""The stages of a stop: their sum, a lame duck before the drain, and what skips it."""

import re
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentserve.client import Client
from service.observe import tracing
from service.settings import Settings
from service.stop import EXIT_SECONDS, grace_seconds, stop_seconds
from service.transport import http2_transport
from tests.support import ROOT
from tests.support.processes import Server, free_port
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until
from tests.support.workers import Workers

NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stop") / "models"
    write_tiny(folder / "one")
    return folder


def test_every_limit_on_a_stop_follows_from_one_sum():
    settings = Settings(host="0.0.0.0")  # as the image has it
    grace = grace_seconds(settings.lame_duck, settings.drain_seconds)
    assert grace <= 40
    assert stop_seconds(settings.lame_duck, settings.drain_seconds) < grace
    # After a drain the last replies are read, then the traces are flushed, each to its limit.
    transport = http2_transport._LINGER_SECONDS + http2_transport._FLUSH_SECONDS
    assert transport + 2 * tracing._FLUSH_SECONDS < EXIT_SECONDS - 0.5
    compose = (ROOT / "docker-compose.yml").read_text()
    serving = compose[compose.index("\nx-serving:") : compose.index("\nservices:")]
    assert re.findall(r"stop_grace_period: (\d+)s", serving) == [str(grace)]
    pages = [(ROOT / "docs" / name).read_text() for name in ("operations.md", "containers.md")]
    for name in ("terminationGracePeriodSeconds", "TimeoutStopSec", "stop_grace_period"):
        stated = [number for page in pages for number in re.findall(rf"{name}[:=] ?(\d+)", page)]
        assert set(stated) == {str(grace)}, name


def test_a_process_that_does_not_end_within_its_budget_is_ended():
    code = "import time; from service.stop import exit_after; exit_after(0.2); time.sleep(60)"
    done = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert done.returncode == 1


def test_a_process_whose_log_is_not_read_is_ended_too():
    code = """if True:
        import logging, os, time
        from service.stop import exit_after
        logging.basicConfig()
        os.set_blocking(2, False)
        try:
            while True:
                os.write(2, b"x" * 4096)
        except BlockingIOError:
            os.set_blocking(2, True)
        exit_after(0.2)
        time.sleep(60)
    """
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE) as process:
        try:
            assert process.wait(20) == 1
        finally:
            process.kill()


def health(target: str) -> int:
    options = [("grpc.use_local_subchannel_pool", 1)]
    with grpc.insecure_channel(target, options) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(), timeout=10).status


@pytest.mark.slow
@pytest.mark.parametrize(("transport", "workers"), [("http2", 1), ("http2", 2), ("grpcio", 1)])
def test_a_lame_duck_says_so_and_answers_calls_on_new_connections(
    folder, tmp_path, transport, workers
):
    arguments = ("--transport", transport, "--workers", str(workers), "--lame-duck-seconds", "1.5")
    with Workers(folder, tmp_path / "log", *arguments) as server:
        wait_until(lambda: server.http("/readyz")[0] == 200, server.logged)
        server.signal(signal.SIGTERM)
        began = time.monotonic()
        wait_until(lambda: server.http("/readyz")[0] == 503, server.logged)
        wait_until(lambda: health(server.target) == NOT_SERVING, server.logged)
        calls = 0
        while time.monotonic() - began < 1.0:
            with Client(server.target) as client:
                assert client.sample(1, seed=calls).shape == (1, 1, 4, 4)
            calls += 1
        assert calls > 3
        assert server.process.wait(30) == 0
        assert time.monotonic() - began > 1.4
        assert server.logged().index("lame duck") < server.logged().index("draining")


@pytest.mark.parametrize(("workers", "names"), [(1, ["SIGTERM", "SIGTERM"]), (2, ["SIGINT"])])
def test_sigint_and_a_second_signal_skip_the_lame_duck(folder, tmp_path, workers, names):
    arguments = ("--workers", str(workers), "--lame-duck-seconds", "30")
    with Workers(folder, tmp_path / "log", *arguments) as server:
        wait_until(lambda: server.http("/readyz")[0] == 200, server.logged)
        began = time.monotonic()
        for name in names:
            server.signal(signal.Signals[name])
            time.sleep(0.2)
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 8


def test_a_server_listens_once_it_has_loaded(tmp_path):
    for name in "ab":
        write_tiny(tmp_path / "models" / name)
    port = free_port()
    refused = []

    def connect() -> None:
        while not stopped.is_set():
            with socket.socket() as caller:
                if caller.connect_ex(("127.0.0.1", port)):
                    refused.append(time.monotonic())
                else:
                    return
            time.sleep(0.01)

    stopped = threading.Event()
    caller = threading.Thread(target=connect)
    caller.start()
    try:
        with Server(tmp_path / "models", tmp_path / "log", "--port", str(port)) as server:
            caller.join(30)
            # The first connection that is accepted finds all models loaded.
            assert not caller.is_alive()
            assert refused
            assert "serving a, b" in server.log.read_text()
            with Client(server.target) as client:
                assert client.is_serving()
    finally:
        stopped.set()
        caller.join(10)
