"""`latentserve serve --workers`: real processes, over a real port, killed in every way."""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest

from latentserve.client import Client, LatentserveError
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from service.settings import Settings
from service.transport.addresses import Shared
from service.versions import Versions
from service.worker import Orders
from tests.processes import TRANSPORTS, Server, latentserve
from tests.stubs import stub_of
from tests.tiny import write_tiny

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")


class Several(Server):
    """A supervisor, and what it has started."""

    def __init__(self, models, log, *arguments, workers=2):
        super().__init__(models, log, "--workers", str(workers), "--http-port", "0", *arguments)
        self.origin = re.search(r"http://\S+(?=/metrics)", self.process.stdout.readline())[0]

    @property
    def workers(self) -> list[int]:
        """Process ids, in the order of their start."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in children.read_text().split()]

    def page(self, name: str) -> str:
        with urllib.request.urlopen(f"{self.origin}/{name}", timeout=10) as reply:
            return reply.read().decode()

    def ready(self) -> bool:
        try:
            return self.page("readyz") == "ready\n"
        except OSError:
            return False

    def calls(self) -> dict[str, float]:
        """Samples that each worker has answered."""
        pattern = r'^latentserve_requests_total\{.*rpc="Sample",worker="(\d)"\} (\S+)$'
        return {
            worker: float(count)
            for worker, count in re.findall(pattern, self.page("metrics"), re.MULTILINE)
        }

    def models(self) -> dict[str, set[str]]:
        """Versions that each worker serves."""
        pattern = r'^latentserve_model_info\{.*version="(\d)",worker="(\d)"\} 1.0$'
        found: dict[str, set[str]] = {}
        for version, worker in re.findall(pattern, self.page("metrics"), re.MULTILINE):
            found.setdefault(worker, set()).add(version)
        return found


def until(true, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def sample_once(target: str) -> np.ndarray:
    """By a connection of its own: what gRPC shares would all meet one worker."""
    channel = grpc.insecure_channel(target, [("grpc.use_local_subchannel_pool", 1)])
    with channel:
        sample = latent_service_pb2_grpc.LatentServiceStub(channel).Sample
        reply = sample(pb.SampleRequest(count=1, seed=7), timeout=10, wait_for_ready=True)
        return np.frombuffer(reply.images.tensor.data, np.float32)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny(folder / "one", seed=1)
    return folder


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_all_of_them_answer_and_tell_of_it_on_one_page(tiny, tmp_path, transport):
    with Several(tiny, tmp_path / "log", "--transport", transport) as server:
        until(server.ready)
        until(lambda: len(server.models()) == 2)
        images = [sample_once(server.target) for _ in range(32)]
        assert all(np.array_equal(each, images[0]) for each in images)
        until(lambda: sum(server.calls().values()) == 32)
        if transport == "http2":
            assert server.calls() == {"0": 16, "1": 16}  # dealt out in turn
        else:
            assert len(server.calls()) == 2
        page = server.page("metrics")
        assert page.count("# HELP latentserve_requests_total ") == 1
        assert page.count("# TYPE latentserve_requests_total ") == 1
        assert 'process_resident_memory_bytes{worker="1"}' in page
        assert len(server.workers) == 2
        pids = server.workers
        assert server.stop() == 0
    assert not any(map(is_running, pids))
    log = (tmp_path / "log").read_text()
    assert {'"worker": 0', '"worker": 1'} <= set(re.findall(r'"worker": \d', log))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_worker_that_is_killed_comes_back(tiny, tmp_path, transport):
    with Several(tiny, tmp_path / "log", "--transport", transport) as server:
        until(lambda: len(server.models()) == 2)
        first, second = server.workers
        os.kill(first, signal.SIGKILL)
        until(lambda: not is_running(first))
        sample_once(server.target)
        until(lambda: len(server.workers) == 2 and len(server.models()) == 2)
        assert second in server.workers
        assert first not in server.workers
        assert server.ready()
        for _ in range(8):
            sample_once(server.target)
        assert "worker 0 ended with signal 9; again in 0.5 s" in server.log.read_text()


def test_nothing_outlives_a_supervisor_that_is_killed(tiny, tmp_path):
    with Several(tiny, tmp_path / "log") as server:
        pids = server.workers
        server.process.kill()
        until(lambda: not any(map(is_running, pids)))


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_term_lets_calls_finish_and_a_second_one_does_not(tiny, tmp_path, transport):
    def stream(stub):
        # Nobody reads it, so it is in flight for as long as that is wanted.
        request = pb.SampleRequest(count=2_000_000, seed=1)
        return stub.SampleStream(pb.SampleStreamRequest(request=request, chunk_rows=4000))

    arguments = ("--transport", transport)
    with Several(tiny, tmp_path / "log", *arguments) as server, stub_of(server.target) as stub:
        until(server.ready)
        running = stream(stub)
        count = next(running).response.images.tensor.shape[0]
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        count += sum(each.response.images.tensor.shape[0] for each in running)
        assert count == 2_000_000
        assert server.process.wait(10) == 0
    with Several(tiny, tmp_path / "log", *arguments) as server, stub_of(server.target) as stub:
        until(server.ready)
        running = stream(stub)
        next(running)
        pids = server.workers
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert server.process.poll() is None
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert not any(map(is_running, pids))
        with pytest.raises(grpc.RpcError):
            list(running)


def test_all_of_them_reload(tmp_path):
    write_tiny(tmp_path / "models" / "one", seed=1)
    with (
        Several(tmp_path / "models", tmp_path / "log", "--admin", workers=3) as server,
        Client(server.target) as client,
    ):
        until(lambda: server.models() == {"0": {"1"}, "1": {"1"}, "2": {"1"}})
        write_tiny(tmp_path / "models" / "one", seed=2)
        # The one that is asked answers when the others have reloaded as well.
        client.reload()
        assert server.models() == {"0": {"2"}, "1": {"2"}, "2": {"2"}}
        write_tiny(tmp_path / "models" / "one", seed=3)
        server.process.send_signal(signal.SIGHUP)
        until(lambda: server.models() == {"0": {"3"}, "1": {"3"}, "2": {"3"}})


def test_reloads_that_meet_do_not_wait_for_each_other_for_ever(tmp_path):
    write_tiny(tmp_path / "models" / "one", seed=1)
    with Several(tmp_path / "models", tmp_path / "log", "--admin") as server:
        until(lambda: len(server.models()) == 2)
        write_tiny(tmp_path / "models" / "one", seed=2)
        failed: list[BaseException] = []

        def reload():
            try:
                with Client(server.target) as client:
                    client.reload()
            except LatentserveError as error:
                failed.append(error)

        threads = [threading.Thread(target=reload) for _ in range(6)]
        for each in threads:
            each.start()
        for each in threads:
            each.join(30)
            assert not each.is_alive()
        assert not failed
        assert server.models() == {"0": {"2"}, "1": {"2"}}


def test_what_cannot_be_had_is_said_once_and_ends_it(tiny, tmp_path):
    broken = tmp_path / "broken.pem"
    broken.write_text("no certificate")
    common = ("serve", "--models", str(tiny), "--workers", "3", "--http-port", "off")
    done = latentserve(*common, "--port", "0", "--tls-cert", broken, "--tls-key", broken)
    assert done.returncode == 2
    assert done.stderr.count("tls-cert") == 1
    assert "listening" not in done.stdout
    with socket.create_server(("127.0.0.1", 0)) as taken:
        done = latentserve(*common, "--port", str(taken.getsockname()[1]))
    assert done.returncode == 2
    assert re.search(r"port: cannot listen on 127.0.0.1:\d+: Address already in use", done.stderr)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_port_with_workers_is_taken_for_others(tiny, tmp_path, transport):
    with Several(tiny, tmp_path / "log", "--transport", transport) as server:
        port = server.target.rpartition(":")[2]
        common = ("serve", "--models", str(tiny), "--http-port", "off", "--port", port)
        for more in (("--workers", "2"), ("--transport", "grpcio"), ()):
            done = latentserve(*common, *more)
            assert done.returncode == 2
            assert "Address already in use" in done.stderr


def test_ctrl_c_ends_all_of_them(tiny, tmp_path):
    command = [sys.executable, "-m", "latentserve", "serve", "--models", str(tiny), "--port", "0"]
    with (tmp_path / "log").open("w") as log:
        # A terminal signals the whole group.
        process = subprocess.Popen(
            [*command, "--http-port", "off", "--workers", "2"],
            stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            assert "listening on" in process.stdout.readline()
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
            pids = [int(pid) for pid in children.read_text().split()]
            assert len(pids) == 2
            os.killpg(process.pid, signal.SIGINT)
            assert process.wait(30) == 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.stdout.close()
    assert not any(map(is_running, pids))
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_orders_arrive_as_they_were_given():
    settings = Settings(
        models=Path("/some where/ü"), versions=Versions.parse("latest,one=3"), workers=4
    )
    orders = Orders(3, settings, Shared(["127.0.0.1", "::1"], 7))
    assert Orders.parse(orders.line()) == orders


def test_the_supervisor_imports_neither_onnxruntime_nor_grpc():
    code = (
        "import sys, service.supervisor; "
        "print(sorted({'onnxruntime', 'grpc', 'google.protobuf'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"
