"""The server as an operator runs it: start, models, health, refusals, limits, drain."""

import concurrent.futures
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from onnx import TensorProto, helper, numpy_helper

from latentserve.client import (
    Client,
    FailedPrecondition,
    LatentserveError,
    NotFound,
    Retry,
    Unavailable,
)
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from service.models.model import load_model
from service.models.onnx import Device
from service.models.repository import Repository
from tests.support.in_process import refused_start, run_cli
from tests.support.processes import Server, latentserve
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
SERVICE = "latentserve.v1.LatentService"


@pytest.fixture
def tiny(tmp_path):
    folder = tmp_path / "models"
    write_tiny(folder / "one")
    write_tiny(folder / "two", dim=5, seed=2)
    return folder


@pytest.fixture(scope="module")
def assorted(tmp_path_factory):
    """A server of good models, and of models of which one version or all are refused."""
    folder = tmp_path_factory.mktemp("assorted") / "models"
    write_tiny(folder / "one")
    write_tiny(folder / "one", seed=9)
    write_tiny(folder / "two", dim=5, seed=2)
    write_tiny(folder / "within", golden_error=5e-5)
    write_tiny(folder / "wrong", golden_error=0.01)
    write_tiny(folder / "torn")
    (write_tiny(folder / "torn", seed=9) / "decoder.onnx").write_bytes(b"nothing")
    write_tiny(folder / "unfit")
    change_manifest(write_tiny(folder / "unfit", seed=9), with_another_dimension)
    change_manifest(write_tiny(folder / "otherwise"), with_another_noise)
    with Server(folder, folder.with_name("log")) as server:
        yield server.wait_until_serving()


@pytest.fixture
def assorted_client(assorted):
    with Client(assorted.target) as connected:
        yield connected


def change_manifest(bundle: Path, change) -> None:
    content = json.loads((bundle / "manifest.json").read_text())
    change(content)
    (bundle / "manifest.json").write_text(json.dumps(content))


def with_another_dimension(manifest: dict) -> None:
    manifest["latent_dim"] = 5
    for graph in manifest["graphs"].values():
        for tensor in (*graph["inputs"], *graph["outputs"]):
            tensor["shape"] = [5 if axis == 3 else axis for axis in tensor["shape"]]


def with_another_noise(manifest: dict) -> None:
    assert manifest["noise"] == "philox4x64-10/as241/1"
    manifest["noise"] = "mersenne/1"


def health(server: Server, name: str = "") -> int:
    with grpc.insecure_channel(server.target) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        return stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status


def wait_for(text: str, server: Server) -> None:
    wait_until(lambda: text in server.log.read_text(), server.log.read_text)


# ------------------------------------------------------------------ models


def test_several_models_are_served_and_the_first_by_name_is_the_default(assorted, assorted_client):
    info = assorted_client.info()
    assert [model.name for model in info.models] == ["one", "torn", "two", "unfit", "within"]
    assert info.default_model == "one"
    assert assorted_client.sample_with_latents(2, seed=1).latents.shape == (2, 3)
    assert assorted_client.sample_with_latents(2, seed=1, model="two").latents.shape == (2, 5)
    assert health(assorted, f"{SERVICE}/two") == SERVING


def test_the_default_model_can_be_chosen(tiny, tmp_path):
    with (
        Server(tiny, tmp_path / "log", "--default-model", "two").wait_until_serving() as server,
        Client(server.target) as c,
    ):
        assert c.model().name == "two"


def test_the_highest_version_is_served(assorted_client):
    assert assorted_client.model("one").version == 2
    with pytest.raises(NotFound, match=r"model.version: got 1, wanted 2"):
        assorted_client.sample(1, model="one", version=1)


def test_a_broken_version_is_refused_and_the_one_before_it_serves(assorted, assorted_client):
    assert assorted_client.model("torn").version == 1
    assert "refused torn/2" in assorted.log.read_text()
    assert "decoder.onnx: 7 bytes" in assorted.log.read_text()
    assert health(assorted, f"{SERVICE}/torn") == SERVING


def test_a_bad_model_is_not_serving_and_does_not_take_a_good_one_down(assorted, assorted_client):
    assert health(assorted) == SERVING
    assert health(assorted, f"{SERVICE}/wrong") == NOT_SERVING
    assert health(assorted, f"{SERVICE}/two") == SERVING
    with pytest.raises(NotFound, match="wanted one of one, torn, two, unfit, within"):
        assorted_client.sample(1, model="wrong")
    assert assorted_client.sample(1, seed=1).shape == (1, 1, 4, 4)


def test_an_unreadable_model_folder_does_not_take_the_other_models_down(tiny, monkeypatch):
    """In process, with a patched `iterdir`: file permissions do not bind root."""
    (tiny / "secret").mkdir()
    real = Path.iterdir

    def iterdir(path):
        if path.name == "secret":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    models = Repository(tiny, lambda bundle: load_model(bundle, Device("cpu"))).models()
    assert list(models.loaded) == ["one", "two"]
    assert [refused.name for refused in models.refused] == ["secret"]
    assert "Permission denied" in models.refused[0].problem


def test_without_its_default_model_a_server_is_not_ready_and_the_others_answer(tiny, tmp_path):
    write_tiny(tiny / "bad", golden_error=0.01)
    with Server(tiny, tmp_path / "log", "--default-model", "bad") as server:
        wait_for("default not loaded", server)
        with Client(server.target, retry=Retry(attempts=1)) as c:
            with pytest.raises(Unavailable, match="the default model is not loaded"):
                c.sample(1)
            assert c.sample(1, seed=1, model="two").shape == (1, 1, 4, 4)
            assert c.info().default_model == ""
        assert health(server) == NOT_SERVING
        assert health(server, f"{SERVICE}/two") == SERVING


def test_a_manifest_that_does_not_fit_its_graphs_is_refused(assorted, assorted_client):
    assert assorted_client.model("unfit").version == 1
    assert "refused unfit/2" in assorted.log.read_text()


def test_a_model_whose_golden_rows_differ_within_the_tolerance_is_served(assorted):
    assert health(assorted, f"{SERVICE}/within") == SERVING


def test_a_bundle_with_another_noise_scheme_is_refused(assorted):
    assert health(assorted, f"{SERVICE}/otherwise") == NOT_SERVING
    assert "'mersenne/1', this server draws" in assorted.log.read_text()


def test_device_auto_falls_back_to_the_cpu_and_logs_it(assorted, assorted_client):
    assert "device auto: using cpu" in assorted.log.read_text()
    assert assorted_client.info().device == "auto"
    assert assorted_client.model().devices == {"encoder": "cpu", "decoder": "cpu"}


# --------------------------------------------------------------- not ready


def test_a_model_whose_golden_rows_differ_is_not_served(tmp_path):
    write_tiny(tmp_path / "models" / "off", golden_error=2e-4)
    with Server(tmp_path / "models", tmp_path / "log") as server:
        wait_for("no model could be loaded", server)
        assert "decoder.logits: differs from its golden rows by 0.0002" in server.log.read_text()
        assert health(server) == NOT_SERVING
        assert health(server, SERVICE) == NOT_SERVING
        with Client(server.target, retry=Retry(attempts=1)) as client:
            for call in (lambda: client.sample(1), lambda: client.decode(np.zeros((1, 3)))):
                with pytest.raises(Unavailable, match="no model is loaded") as caught:
                    call()
                assert caught.value.reason == "NOT_READY"
            assert client.info().models == ()
        assert server.process.poll() is None
        assert server.stop() == 0


def test_a_server_with_an_empty_models_folder_is_up_and_not_ready(tmp_path):
    (tmp_path / "models").mkdir()
    with Server(tmp_path / "models", tmp_path / "log") as server:
        wait_for("no model in", server)
        assert health(server) == NOT_SERVING
        assert run_cli("check", "--server", server.target).returncode == 1
        assert server.stop() == 0


# ---------------------------------------------------------- refuses to start


def test_a_server_refuses_cuda_without_a_gpu(tiny):
    done = latentserve("serve", "--models", tiny, "--port", "0", "--device", "cuda")
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("latentserve serve: device: got cuda, but ")
    assert "--device cpu" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("each_transport")
def test_a_taken_port_is_refused(tiny, tmp_path):
    with Server(tiny, tmp_path / "log") as server:
        port = server.target.rpartition(":")[2]
        done = latentserve("serve", "--models", tiny, "--port", port)
        assert done.returncode == 2
        assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("each_transport")
def test_a_port_held_with_so_reuseport_is_refused(tiny):
    with socket.socket() as holder:
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        assert refused_start("--models", tiny, "--port", port).returncode == 2


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--models", "/nonexistent"), "models folder /nonexistent: No such file"),
        (("--default-model", "three"), "default-model: got 'three', wanted one of one, two"),
        (("--device", "tpu"), "device: got 'tpu', wanted auto, cpu, cuda or cuda:N"),
        (("--port", "99999"), "--port: got '99999'"),
        (("--max-rows", "many"), "--max-rows: got 'many'"),
        (("--config", "/nonexistent.toml"), "config /nonexistent.toml"),
    ],
)
def test_an_invalid_setting_is_refused_without_a_traceback(tiny, arguments, text):
    done = refused_start("--models", tiny, *arguments)
    assert done.returncode == 2
    assert text in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
@pytest.mark.usefixtures("each_transport")
def test_a_port_taken_on_one_address_of_a_host_is_refused(tiny, host):
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        done = refused_start("--models", tiny, "--port", port, "--host", host)
        assert done.returncode == 2
        assert f"cannot listen on {host}:{port}" in done.stderr.splitlines()[-1]


@pytest.mark.usefixtures("each_transport")
def test_a_host_that_is_not_this_machine_is_refused(tiny):
    done = refused_start("--models", tiny, "--host", "192.0.2.1")
    assert done.returncode == 2
    assert "host: got '192.0.2.1', wanted an address of this machine" in done.stderr


# ------------------------------------------------------------------- limits


@pytest.mark.usefixtures("each_transport")
def test_max_rows_is_enforced_announced_and_followed_by_the_client(tiny, tmp_path):
    with (
        Server(tiny, tmp_path / "log", "--max-rows", "7").wait_until_serving() as server,
        Client(server.target) as client,
        grpc.insecure_channel(server.target) as channel,
    ):
        assert client.info().max_rows == client.model().max_rows == 7
        stub = latent_service_pb2_grpc.LatentServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Sample(pb.SampleRequest(count=8))
        assert caught.value.details() == "count: got 8, wanted 1 to 7"
        assert client.sample(50, seed=1).shape == (50, 1, 4, 4)


def test_max_rows_is_lowered_to_what_fits_into_a_message(tmp_path):
    write_tiny(tmp_path / "models" / "large", shape=(3, 64, 64))
    arguments = ("--max-message-bytes", str(2**20))
    with (
        Server(tmp_path / "models", tmp_path / "log", *arguments).wait_until_serving() as server,
        Client(server.target) as client,
    ):
        # 1 MiB holds 21 float32 images of 3 x 64 x 64 and their latents.
        assert client.model().max_rows == 21
        assert client.sample(64, seed=1).shape == (64, 3, 64, 64)


def test_a_model_whose_row_does_not_fit_into_a_message_is_refused(tmp_path):
    write_tiny(tmp_path / "models" / "large", shape=(3, 64, 64))
    with Server(tmp_path / "models", tmp_path / "log", "--max-message-bytes", "8192") as server:
        wait_for("no model could be loaded", server)
        assert "max-message-bytes: got 8192" in server.log.read_text()


# ------------------------------------------------------ health and reflection


def test_unknown_health_names_are_not_found(server):
    with pytest.raises(grpc.RpcError) as caught:
        health(server, "nope")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_reflection_is_off_by_default(server):
    assert reflected(server) is None


@pytest.mark.usefixtures("each_transport")
def test_reflection_lists_the_services(tiny, tmp_path):
    with Server(tiny, tmp_path / "log", "--reflection").wait_until_serving() as server:
        assert set(reflected(server) or ()) == {
            SERVICE,
            "inference.GRPCInferenceService",
            "grpc.health.v1.Health",
            "grpc.reflection.v1.ServerReflection",
            "grpc.reflection.v1alpha.ServerReflection",
        }


def reflected(server: Server) -> list[str] | None:
    with grpc.insecure_channel(server.target) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        request = reflection_pb2.ServerReflectionRequest(list_services="")
        try:
            reply = next(stub.ServerReflectionInfo(iter([request]), timeout=10))
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.UNIMPLEMENTED:
                raise
            return None
        return [service.name for service in reply.list_services_response.service]


# -------------------------------------------------------------------- drain


def arrived(server: Server, rows: int) -> float:
    """Number of Sample calls, of `rows` rows each, that have arrived so far."""
    ended = server.metric("latentserve_requests_total", rpc="Sample", code="OK")
    return ended + server.metric("latentserve_queue_rows") / rows


@pytest.mark.usefixtures("each_transport")
def test_sigterm_drains_calls_in_flight_and_exits_with_0(models, tmp_path):
    calls, rows = 12, 4096
    server = Server(models, tmp_path / "log", "--http-port", "0").wait_until_serving()
    with server, Client(server.target, retry=Retry(attempts=1)) as client:
        wanted = client.sample(rows, seed=5, dtype="uint8")
        assert arrived(server, rows) == 1
        with concurrent.futures.ThreadPoolExecutor(calls) as pool:
            started = threading.Barrier(calls + 1)

            def call():
                started.wait()
                return client.sample(rows, seed=5, dtype="uint8")

            replies = [pool.submit(call) for _ in range(calls)]
            started.wait()
            deadline = time.monotonic() + 30
            while arrived(server, rows) <= calls:
                assert time.monotonic() < deadline, server.log.read_text()
            os.kill(server.process.pid, signal.SIGTERM)
            for reply in replies:
                assert (reply.result(60) == wanted).all()
        assert server.process.wait(30) == 0
        assert "draining" in server.log.read_text()
        with pytest.raises(Unavailable):
            client.sample(1)


@pytest.mark.usefixtures("each_transport")
def test_sigterm_sets_health_to_not_serving_before_the_port_closes(models, tmp_path):
    with (
        Server(models, tmp_path / "log").wait_until_serving() as server,
        grpc.insecure_channel(server.target) as channel,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert next(watch).status == SERVING
        os.kill(server.process.pid, signal.SIGTERM)
        assert next(watch).status == NOT_SERVING
        # An open watch must not delay the exit for the 30 seconds that calls are given.
        began = time.monotonic()
        assert server.process.wait(30) == 0
        assert time.monotonic() - began < 8


def test_sigterm_while_loading_skips_the_remaining_models_and_exits_with_0(tmp_path):
    first = write_tiny(tmp_path / "models" / "a", shape=(3, 64, 64), dim=200)
    for name in "bcdefgh":
        copy = shutil.copytree(first, tmp_path / "models" / name / "1")
        change_manifest(copy, lambda manifest, name=name: manifest.update(name=name))
    log = tmp_path / "log"
    with log.open("w") as file:
        # It prints its address once it has loaded: not waited for.
        process = subprocess.Popen(
            [sys.executable, "-m", "latentserve", "serve", "--models", str(tmp_path / "models"),
             "--port", "0", "--http-port", "off"],
            stdout=subprocess.DEVNULL, stderr=file,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 30
        while "loaded a/1" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.005)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)
    assert "loaded h/1" not in log.read_text()
    assert "stopped" in log.read_text()


@pytest.mark.usefixtures("each_transport")
def test_a_second_signal_cuts_the_drain_short(models, tmp_path):
    with (
        Server(models, tmp_path / "log").wait_until_serving() as server,
        Client(server.target, retry=Retry(attempts=1)) as client,
        concurrent.futures.ThreadPoolExecutor(40) as pool,
    ):
        replies = [pool.submit(client.sample, 4096, timeout=60) for _ in range(40)]
        concurrent.futures.wait(replies, return_when=concurrent.futures.FIRST_COMPLETED)
        os.kill(server.process.pid, signal.SIGTERM)
        wait_for("draining", server)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.process.wait(30) == 0
        outcomes = [reply.exception() for reply in replies]
        assert any(isinstance(outcome, LatentserveError) for outcome in outcomes)


@pytest.mark.usefixtures("each_transport")
def test_an_idle_server_exits_at_once_on_sigterm(tiny, tmp_path):
    with Server(tiny, tmp_path / "log").wait_until_serving() as server:
        began = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - began < 5


def test_cancelled_and_timed_out_calls_do_not_affect_the_next_one(client, server):
    with grpc.insecure_channel(server.target) as channel:
        stub = latent_service_pb2_grpc.LatentServiceStub(channel)
        for _ in range(5):
            future = stub.Sample.future(pb.SampleRequest(count=2048))
            future.cancel()
        with pytest.raises(grpc.RpcError) as caught:
            stub.Sample(pb.SampleRequest(count=4096), timeout=0.001)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    assert client.sample(3, seed=1).shape == (3, 1, 28, 28)


def test_concurrent_callers_get_their_own_rows(client):
    wanted = {seed: client.sample(seed + 1, seed=seed) for seed in range(8)}

    def call(seed):
        return all((client.sample(seed + 1, seed=seed) == wanted[seed]).all() for _ in range(20))

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, wanted))


@pytest.mark.usefixtures("each_transport")
def test_an_internal_error_carries_a_request_id_and_not_its_text(tiny, tmp_path):
    shutil.rmtree(tiny)
    write_tiny(tiny / "fails", fails_above=10.0)
    with (
        Server(tiny, tmp_path / "log").wait_until_serving() as server,
        Client(server.target) as client,
    ):
        with pytest.raises(Exception, match=r"internal error, request id [0-9a-f]{16}") as caught:
            client.decode(np.full((3, 3), 99, np.float32))
        assert caught.value.code == grpc.StatusCode.INTERNAL
        request_id = str(caught.value).split()[-1]
        assert request_id in server.log.read_text()
        assert "onnxruntime" not in str(caught.value)
        assert client.decode(np.zeros((4, 3), np.float32)).shape == (4, 1, 4, 4)


def test_the_client_raises_failed_precondition_for_a_label_without_labels(client):
    with pytest.raises(FailedPrecondition) as caught:
        client.sample(1, label=3)
    assert caught.value.reason == "NOT_FOR_THIS_MODEL"


# ------------------------------------------------------------------- memory

WIDE = 256
"""Latent dimensions of a mixture; the matrices that sample 4096 rows at once take 1 GiB."""

PEAK = """
import resource, sys
import numpy as np
from common import noise
from service.models.onnx import Device, Graph

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

graph = Graph(open(sys.argv[1], "rb").read(), Device("cpu"), 1)
inputs = {"eps": noise.standard_normal(7, 0, 4096, 256), "u": noise.uniform(7, 0, 4096)}
graph.run({name: array[:1] for name, array in inputs.items()})
before = peak()
whole = graph.run(inputs)["z"]
for row in (0, 63, 64, 4095):
    alone = graph.run({name: array[row : row + 1].copy() for name, array in inputs.items()})["z"]
    assert alone.tobytes() == whole[row].tobytes(), row
assert whole.shape == (4096, 256)
print(peak() - before)
"""


def test_a_large_run_takes_little_memory_and_is_bit_equal_to_single_rows(tmp_path):
    scales = np.random.default_rng(0).standard_normal((4, WIDE, WIDE)).astype(np.float32)
    nodes = [
        helper.make_node("Mul", ["u", "count"], ["place"]),
        helper.make_node("Cast", ["place"], ["whole"], to=TensorProto.INT64),
        helper.make_node("Squeeze", ["whole", "last"], ["component"]),
        helper.make_node("Gather", ["scales", "component"], ["scale"]),
        helper.make_node("Unsqueeze", ["eps", "last"], ["column"]),
        helper.make_node("MatMul", ["scale", "column"], ["product"]),
        helper.make_node("Squeeze", ["product", "last"], ["z"]),
    ]
    constants = {"count": np.float32(4), "last": np.array([-1]), "scales": scales}
    graph = helper.make_graph(
        nodes,
        "prior",
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ("N", width))
            for name, width in (("eps", WIDE), ("u", 1))
        ],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ("N", WIDE))],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    (tmp_path / "prior.onnx").write_bytes(model.SerializeToString())
    done = subprocess.run(
        [sys.executable, "-c", PEAK, str(tmp_path / "prior.onnx")],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 100  # MiB; 1,028 without the limit on rows


def test_rows_of_a_large_request_are_bit_equal_to_requests_of_one_row(kinds_client):
    images = np.random.default_rng(0).random((300, 1, 28, 28), np.float32)
    posterior = kinds_client.encode(images, model="flow-gmm")
    samples = kinds_client.sample_with_latents(300, seed=5, label=3, model="flow-gmm")
    for row in (0, 63, 64, 127, 128, 299):
        alone = kinds_client.encode(images[row : row + 1], model="flow-gmm")
        assert (alone.mean[0] == posterior.mean[row]).all()
        assert (alone.log_var[0] == posterior.log_var[row]).all()
        one = kinds_client.sample(1, seed=5, offset=row, label=3, model="flow-gmm")
        assert (one[0] == samples.images[row]).all()
