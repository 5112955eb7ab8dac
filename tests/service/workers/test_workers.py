"""`serve --workers N`: several worker processes on one port, under a supervisor."""

import concurrent.futures
import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import grpc
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from service.errors import StartError
from service.settings import read_settings
from service.transport.addresses import free_addresses, shared_sockets
from service.workers.control import WorkerConfig
from tests.support.processes import TRANSPORTS, Server, latentserve
from tests.support.stubs import stub_of
from tests.support.tiny import write_tiny

MARK = "LATENTSERVE_TEST_MARK"
SERVE = (sys.executable, "-m", "latentserve", "serve")


def marked(mark: str) -> set[int]:
    """Pids of the processes with a mark in their environment, also of orphans."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            # That of a zombie is empty.
            if f"{MARK}={mark}\0".encode() in path.read_bytes():
                found.add(int(path.parent.name))
    return found


def wait_until(condition, log=lambda: "", seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, log()
        time.sleep(0.02)


class Workers(Server):
    """A server with workers; its exit asserts that no process is left."""

    def __init__(self, models, log, *arguments, workers=2):
        self.mark = secrets.token_hex(8)
        options = ("--workers", str(workers), "--http-port", "0", *arguments)
        super().__init__(models, log, *options, env={MARK: self.mark})

    def pids(self) -> set[int]:
        """Pids of the workers."""
        return marked(self.mark) - {self.process.pid}

    def signal(self, name: signal.Signals) -> None:
        os.kill(self.process.pid, name)

    def http(self, path: str, accept: str = "*/*") -> tuple[int, str]:
        request = urllib.request.Request(self.origin + path, headers={"Accept": accept})
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                return reply.status, reply.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, ""

    def labels(self, name: str) -> dict[str, list[dict[str, str]]]:
        """The labels of a metric's samples, by worker."""
        result: dict[str, list[dict[str, str]]] = {}
        for sample in self.samples():
            if sample.name == name:
                result.setdefault(sample.labels["worker"], []).append(sample.labels)
        return result

    def served(self) -> list[list[str]]:
        """Models that each worker serves, as name/version."""
        info = self.labels("latentserve_model_info")
        return [
            sorted(f"{labels['model']}/{labels['version']}" for labels in info[worker])
            for worker in sorted(info)
        ]

    def logged(self) -> str:
        return self.log.read_text()

    def __exit__(self, *error):
        try:
            super().__exit__(*error)
            wait_until(lambda: not marked(self.mark), self.logged, seconds=5)
        finally:
            for pid in marked(self.mark):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)


@pytest.fixture
def folder(tmp_path) -> Path:
    write_tiny(tmp_path / "models" / "one", seed=1)
    return tmp_path / "models"


@pytest.fixture
def wide(tmp_path) -> Path:
    """A model of images so large that an unread stream of them stays in flight."""
    write_tiny(tmp_path / "models" / "wide", shape=(3, 64, 64), dim=8)
    return tmp_path / "models"


@contextlib.contextmanager
def call_in_flight(server: Server):
    """Starts a stream; yields a function that reads its rest and returns its number of rows."""
    with stub_of(server.target) as stub:
        request = pb.SampleRequest(count=1000, seed=1)
        stream = stub.SampleStream(pb.SampleStreamRequest(request=request, chunk_rows=50))
        first = next(stream)
        yield lambda: sum(reply.response.images.tensor.shape[0] for reply in [first, *stream])


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
        assert {sample.labels.get("worker") for sample in samples} == {"0", "1"}
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
        pattern = r'^latentserve_requests_total\{.*rpc="Sample",worker="\d"\} (\S+)$'
        assert list(map(float, re.findall(pattern, page, re.MULTILINE))) == [4.0, 4.0, 4.0]


def test_a_connection_not_acknowledged_by_a_dead_worker_goes_to_another(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        stuck = min(server.pids())
        os.kill(stuck, signal.SIGSTOP)
        with concurrent.futures.ThreadPoolExecutor(4) as pool:
            calls = [pool.submit(sample_by_itself, server, seed) for seed in range(4)]
            wait_until(lambda: sum(call.done() for call in calls) == 2)
            time.sleep(0.3)
            assert sum(call.done() for call in calls) == 2  # the others are with the stuck worker
            os.kill(stuck, signal.SIGKILL)
            assert [call.result(10) for call in calls] == [1] * 4


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


# -------------------------------------------------------------------- deaths


@pytest.mark.usefixtures("each_transport")
def test_a_killed_worker_is_restarted_while_the_port_keeps_answering(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        before = server.pids()
        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        calls = 0
        while len(server.served()) < 2 or calls < 20:
            with Client(server.target) as client:
                assert client.sample(2, seed=1).shape == (2, 1, 4, 4)
            assert server.http("/readyz")[0] == server.http("/healthz")[0] == 200
            calls += 1
            assert calls < 2000, server.logged()
        assert killed not in server.pids()
        assert len(server.pids() & before) == 1
        assert re.search(r"worker [01] ended: signal 9; again in 0.5 s", server.logged())


def test_a_worker_that_gets_sigterm_exits_and_is_restarted(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        os.kill(min(server.pids()), signal.SIGTERM)
        wait_until(lambda: "ended: status 0" in server.logged(), server.logged)
        wait_until(lambda: len(server.served()) == 2, server.logged)


def test_a_worker_that_cannot_restart_is_retried_until_it_can(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        folder.rename(tmp_path / "elsewhere")
        os.kill(min(server.pids()), signal.SIGKILL)
        wait_until(lambda: "ended: status 2" in server.logged(), server.logged)
        assert f"models folder {folder}: No such file" in server.logged()
        with Client(server.target) as client:
            assert client.sample(2, seed=1).shape == (2, 1, 4, 4)
        assert server.http("/readyz")[0] == 200
        (tmp_path / "elsewhere").rename(folder)
        wait_until(lambda: len(server.served()) == 2, server.logged)


def test_the_server_is_not_ready_while_all_workers_are_gone(folder, tmp_path):
    with Workers(folder, tmp_path / "log") as server:
        for pid in server.pids():
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: server.http("/readyz")[0] == 503, server.logged)
        assert server.http("/metrics")[0] == server.http("/healthz")[0] == 200
        wait_until(lambda: server.http("/readyz")[0] == 200, server.logged)


@pytest.mark.usefixtures("each_transport")
def test_workers_drain_and_exit_when_the_supervisor_is_killed(wide, tmp_path):
    with Workers(wide, tmp_path / "log") as server:
        with call_in_flight(server) as rest:
            server.signal(signal.SIGKILL)
            server.process.wait(10)
            time.sleep(0.5)
            assert rest() == 1000
        wait_until(lambda: not marked(server.mark), server.logged)


def test_a_supervisor_killed_while_starting_leaves_no_process(folder, tmp_path):
    for delay in (0.1, 0.3, 0.5, 0.7):
        mark = secrets.token_hex(8)
        process = started(folder, tmp_path, mark)
        time.sleep(delay)
        process.kill()
        process.wait(10)
        wait_until(lambda mark=mark: not marked(mark), seconds=15)


def started(folder: Path, tmp_path: Path, mark: str, **options) -> subprocess.Popen:
    with (tmp_path / "log").open("w") as log:
        return subprocess.Popen(
            [*SERVE, "--models", str(folder), "--port", "0", "--http-port", "off",
             "--workers", "2"],
            stdout=subprocess.DEVNULL, stderr=log, env={**os.environ, MARK: mark}, **options,
        )  # fmt: skip


# ------------------------------------------------------------------- signals


@pytest.mark.usefixtures("each_transport")
def test_sigterm_drains_a_call_in_flight(wide, tmp_path):
    with Workers(wide, tmp_path / "log") as server:
        with call_in_flight(server) as rest:
            server.signal(signal.SIGTERM)
            wait_until(lambda: server.http("/readyz")[0] == 503, server.logged)
            assert server.http("/healthz")[0] == 200
            time.sleep(0.3)
            assert server.process.poll() is None
            assert rest() == 1000
        assert server.process.wait(30) == 0


@pytest.mark.usefixtures("each_transport")
def test_a_second_sigterm_cuts_the_drain_short(wide, tmp_path):
    with Workers(wide, tmp_path / "log") as server, call_in_flight(server) as rest:
        server.signal(signal.SIGTERM)
        wait_until(lambda: "draining" in server.logged(), server.logged)
        began = time.monotonic()
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 5
        with pytest.raises(grpc.RpcError):
            rest()


def test_sigterm_to_all_processes_is_one_graceful_stop(wide, tmp_path):
    """As systemd sends it; a worker also gets the supervisor's `stop`, which is no second one."""
    with Workers(wide, tmp_path / "log") as server:
        with call_in_flight(server) as rest:
            for pid in marked(server.mark):
                # An idle worker may have exited already, at the supervisor's `stop`.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGTERM)
            time.sleep(0.5)
            assert rest() == 1000
        assert server.process.wait(30) == 0


def test_ctrl_c_at_a_terminal_drains_and_exits_with_0(folder, tmp_path):
    mark = secrets.token_hex(8)
    # A process group of its own, as a shell makes for a command in the foreground.
    process = started(folder, tmp_path, mark, process_group=0)
    log = tmp_path / "log"
    wait_until(lambda: log.read_text().count("serving one") == 2, log.read_text)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(20) == 0
    assert "Traceback" not in log.read_text()
    assert not marked(mark)


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("delay", [0.2, 0.35, 0.5, 0.65, 0.8])
def test_sigterm_while_starting_leaves_no_process(folder, tmp_path, delay):
    mark = secrets.token_hex(8)
    process = started(folder, tmp_path, mark)
    time.sleep(delay)
    process.send_signal(signal.SIGTERM)
    # Killed by the signal itself before Python has a handler for it.
    assert process.wait(20) in (0, -signal.SIGTERM)
    assert not marked(mark)
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_worker_that_hangs_is_killed_after_the_drain(folder, tmp_path):
    with Workers(folder, tmp_path / "log", "--drain-seconds", "0") as server:
        stuck = min(server.pids())
        os.kill(stuck, signal.SIGSTOP)
        assert server.http("/metrics")[0] == 200
        server.signal(signal.SIGTERM)
        assert server.process.wait(30) == 0
        assert "has not ended; it is killed" in server.logged()


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
        for version in range(2, 5):
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
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reply = pool.submit(client.reload)
            time.sleep(0.5)
            assert not reply.done()
            os.kill(other, signal.SIGKILL)
            assert [model.version for model in reply.result(10).serving] == [1]


def number_of(pid: int) -> str:
    """Number of the worker that a process is, from its arguments."""
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")[-2]


# ---------------------------------------------------------- refuses to start


def test_workers_refuse_a_bad_certificate_with_one_error_and_status_2(folder, tmp_path):
    (tmp_path / "bad.pem").write_text("nothing")
    arguments = ("--tls-cert", tmp_path / "bad.pem", "--tls-key", tmp_path / "bad.pem")
    assert_refused(folder, "are no certificate in PEM", *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--models", "/nonexistent"), "models folder /nonexistent: No such file"),
        (("--default-model", "three"), "default-model: got 'three'"),
        (("--device", "tpu"), "device: got 'tpu'"),
        (("--host", "192.0.2.1"), "host: got '192.0.2.1', wanted an address of this machine"),
        (("--workers", "0"), "--workers: got '0'"),
    ],
)
@pytest.mark.usefixtures("each_transport")
def test_workers_refuse_unusable_settings_with_one_error_and_status_2(folder, arguments, text):
    assert_refused(folder, text, *arguments)


def assert_refused(folder: Path, text: str, *arguments: str | Path) -> None:
    options = ("--models", folder, "--port", "0", "--http-port", "off", "--workers", "2")
    done = latentserve("serve", *options, *arguments, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("latentserve")]
    assert len(errors) == 1, done.stderr
    assert text in errors[0]
    assert done.stderr.count(text) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("holder", ["alone", "workers"])
def test_a_taken_port_is_refused_by_and_with_workers(folder, tmp_path, holder):
    count = {"alone": "1", "workers": "2"}[holder]
    with Server(folder, tmp_path / "log", "--workers", count) as server:
        port = server.target.rpartition(":")[2]
        for arguments in (("--workers", "2"), ()):
            done = latentserve("serve", "--port", port, "--http-port", "off", *arguments)
            assert done.returncode == 2
            assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


def test_a_shared_port_is_held_before_any_worker_listens():
    (held,) = shared_sockets("127.0.0.1", 0)
    with held:
        port = held.getsockname()[1]
        for bind in (shared_sockets, free_addresses):
            with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}"):
                bind("127.0.0.1", port)
        # A worker can bind it all the same.
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))


def test_connections_in_time_wait_do_not_block_a_shared_port():
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            accepted, _ = listening.accept()
            # The side that closes first keeps the connection in TIME_WAIT.
            accepted.close()
            assert caller.recv(1) == b""
    (held,) = shared_sockets("127.0.0.1", port)
    held.close()


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_addresses_of_a_host_name_are_served_by_workers(folder, tmp_path, transport):
    arguments = ("--host", "localhost", "--transport", transport)
    with Workers(folder, tmp_path / "log", *arguments) as server:
        port = server.target.rpartition(":")[2]
        for address in free_addresses("localhost", 0):
            shown = f"[{address}]" if ":" in address else address
            with Client(f"{shown}:{port}") as client:
                assert client.is_serving()
