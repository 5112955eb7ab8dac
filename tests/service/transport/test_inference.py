"""The Open Inference Protocol of a real server, over both transports, by raw stubs."""

import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import error_details_pb2

from latentserve.client import Client
from service.api.inference import inference_service_pb2 as pb
from tests.support.conditional import Conditional, write_conditional
from tests.support.inference import InferenceStub, arrays_of, infer_request
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial
from tests.support.stubs import details
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

TOKEN = "0123456789abcdef"
IMAGES = np.random.default_rng(0).random((3, 1, 4, 4), np.float32)

pytestmark = pytest.mark.usefixtures("each_transport")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny(root / "one")
    write_conditional(root / "classes", Conditional())
    write_spatial(root / "raw", Spatial(likelihood="none"))
    return root


@contextmanager
def stub_of(server: Server) -> Iterator[Any]:
    options = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
    with grpc.insecure_channel(server.target, options=options) as channel:
        yield InferenceStub(channel, ["ModelStreamInfer", "ModelStatistics"])


def code_of(call: Any, request: Any, **more: Any) -> grpc.StatusCode:
    try:
        call(request, timeout=10, **more)
    except grpc.RpcError as error:
        return error.code()
    return grpc.StatusCode.OK


def test_a_whole_round_agrees_with_the_calls_of_the_native_client(folder, tmp_path):
    photos = np.random.default_rng(1).random((2, 3, 16, 8), np.float32)
    with (
        Server(folder, tmp_path / "log", "--http-port", "0").wait_until_serving() as server,
        stub_of(server) as stub,
        Client(server.target) as client,
    ):
        assert stub.ServerLive(pb.ServerLiveRequest()).live
        assert stub.ServerReady(pb.ServerReadyRequest()).ready
        assert stub.ModelReady(pb.ModelReadyRequest(name="one.encode")).ready
        assert len(stub.RepositoryIndex(pb.RepositoryIndexRequest()).models) == 5 + 5 + 4
        assert stub.ModelConfig(pb.ModelConfigRequest(name="raw.decode")).config.max_batch_size > 0
        for model, images, label in (
            ("one", IMAGES, None),
            ("classes", IMAGES, 2),
            ("raw", photos, None),
        ):
            native: dict[str, Any] = {"model": model} | ({} if label is None else {"labels": label})
            more: dict[str, Any] = {} if label is None else {"label": label}

            def ask(
                operation: str, inputs: Any, model: str = model, **given: Any
            ) -> dict[str, Any]:
                request = infer_request(f"{model}.{operation}", inputs, **given)
                return arrays_of(stub.ModelInfer(request, timeout=10))

            posterior = client.encode(images, **native)
            got = ask("encode", {"image": images}, **more)
            np.testing.assert_array_equal(got["mean"], posterior.mean)
            np.testing.assert_array_equal(got["log_var"], posterior.log_var)
            decoded = ask("decode", {"z": posterior.mean}, format="uint8", **more)["image"]
            wanted = client.decode(posterior.mean, dtype="uint8", **native)
            np.testing.assert_array_equal(decoded, wanted)
            drawn = ask("sample", {"count": np.array([5])}, seed=3, **more)["image"]
            wanted = client.sample(5, seed=3, label=label, model=model)
            np.testing.assert_array_equal(drawn, wanted)
            again = ask("reconstruct", {"image": images}, **more)["image"]
            np.testing.assert_array_equal(again, client.reconstruct(images, **native))
            if model != "raw":
                score = ask("score", {"image": images}, **more)
                np.testing.assert_array_equal(score["elbo"], client.score(images, **native).elbo)
        calls = {"rpc": "ModelInfer", "model": "one", "code": "OK"}
        assert server.metric("latentserve_requests_total", **calls) == 5
        assert server.metric("latentserve_requests_total", rpc="ModelConfig", model="raw") == 1
        assert server.metric("latentserve_requests_total", rpc="ServerLive") == 0
        assert server.metric("latentserve_requests_total", rpc="ServerReady") == 0


def test_errors_have_the_statuses_and_details_of_the_native_calls(folder, tmp_path):
    with Server(folder, tmp_path / "log").wait_until_serving() as server, stub_of(server) as stub:
        for request, code in (
            (infer_request("nope.encode", {}), grpc.StatusCode.NOT_FOUND),
            (infer_request("raw.score", {}), grpc.StatusCode.NOT_FOUND),
            (infer_request("one.encode", {}, version="7"), grpc.StatusCode.NOT_FOUND),
            (infer_request("classes.encode", {"image": IMAGES}),
             grpc.StatusCode.FAILED_PRECONDITION),
            (infer_request("one.encode", {"image": IMAGES}, timeout=1),
             grpc.StatusCode.DEADLINE_EXCEEDED),
            (infer_request("one.encode", {"image": IMAGES}, timeout=10_000_000),
             grpc.StatusCode.OK),
        ):  # fmt: skip
            assert code_of(stub.ModelInfer, request) is code, request
        for data in (2 * IMAGES, IMAGES[:, :, 1:]):
            request = infer_request("one.encode", {"image": data})
            with pytest.raises(grpc.RpcError) as caught:
                stub.ModelInfer(request, timeout=10)
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            (violation,) = details(caught.value, error_details_pb2.BadRequest).field_violations
            assert violation.field in ("inputs.image.data", "inputs.image.shape")
            assert "wanted" in violation.description
        for method in (stub.ModelStreamInfer, stub.ModelStatistics):
            assert code_of(method, b"") is grpc.StatusCode.UNIMPLEMENTED


def test_large_requests_and_replies_are_answered(tmp_path):
    write_tiny(tmp_path / "models" / "large", shape=(1, 64, 64))
    images = np.random.default_rng(2).random((300, 1, 64, 64), np.float32)
    with (
        Server(tmp_path / "models", tmp_path / "log").wait_until_serving() as server,
        stub_of(server) as stub,
        Client(server.target) as client,
    ):
        wanted = client.reconstruct(images)
        for typed in (False, True):
            request = infer_request("large.reconstruct", {"image": images}, typed=typed)
            reply = stub.ModelInfer(request, timeout=60)
            np.testing.assert_array_equal(arrays_of(reply)["image"], wanted)
        half = infer_request("large.reconstruct", {"image": images}, format="float16")
        got = arrays_of(stub.ModelInfer(half, timeout=60))["image"]
        np.testing.assert_array_equal(got, wanted.astype(np.float16))


def test_only_live_and_ready_need_no_token(folder, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(f"jobs:{TOKEN}\n")
    tokens.chmod(0o600)
    log, arguments = tmp_path / "log", ("--token-file", str(tokens))
    with Server(folder, log, *arguments).wait_until_serving() as server, stub_of(server) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        for method, request in (
            (stub.ModelReady, pb.ModelReadyRequest(name="one.encode")),
            (stub.ServerMetadata, pb.ServerMetadataRequest()),
            (stub.ModelMetadata, pb.ModelMetadataRequest(name="one.encode")),
            (stub.ModelConfig, pb.ModelConfigRequest(name="one.encode")),
            (stub.RepositoryIndex, pb.RepositoryIndexRequest()),
            (stub.ModelInfer, infer_request("one.encode", {"image": IMAGES})),
        ):
            assert code_of(method, request) is grpc.StatusCode.UNAUTHENTICATED
            for token, code in (
                (TOKEN, grpc.StatusCode.OK),
                (TOKEN[::-1], grpc.StatusCode.UNAUTHENTICATED),
            ):
                metadata = (("authorization", f"Bearer {token}"),)
                assert code_of(method, request, metadata=metadata) is code


def test_a_reload_changes_at_once_what_is_served(folder, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(folder / "one", models / "one")
    request = infer_request("one.encode", {"image": IMAGES})
    with Server(models, tmp_path / "log").wait_until_serving() as server, stub_of(server) as stub:
        assert stub.ModelInfer(request, timeout=10).model_version == "1"
        write_tiny(models / "one", seed=5)
        write_tiny(models / "two")
        shutil.copytree(models / "two", models / "two.score")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: stub.ModelInfer(request, timeout=10).model_version == "2")
        assert stub.ModelReady(pb.ModelReadyRequest(name="two.encode"), timeout=10).ready
        versions = stub.ModelMetadata(pb.ModelMetadataRequest(name="one.score")).versions
        assert list(versions) == ["2"]
        old = pb.ModelReadyRequest(name="one.encode", version="1")
        assert code_of(stub.ModelReady, old) is grpc.StatusCode.NOT_FOUND
        index = stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models
        states = {entry.name: entry.state for entry in index}
        assert states.pop("two.score") == "READY"  # the operation of `two`
        refused = [entry for entry in index if entry.state == "UNAVAILABLE"]
        assert [entry.name for entry in refused] == ["two.score"]
    assert "refused two.score/0: model name: got 'two.score'" in server.log.read_text()


def test_a_server_without_a_model_is_live_and_not_ready(tmp_path):
    (tmp_path / "models").mkdir()
    with Server(tmp_path / "models", tmp_path / "log") as server, stub_of(server) as stub:
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
        assert not stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        request = infer_request("one.encode", {"image": IMAGES})
        assert code_of(stub.ModelInfer, request) is grpc.StatusCode.UNAVAILABLE
        assert not stub.RepositoryIndex(pb.RepositoryIndexRequest(), timeout=10).models


def test_a_server_that_stops_is_not_ready_and_still_answers(folder, tmp_path):
    env = {"LATENTSERVE_LAME_DUCK_SECONDS": "30"}
    log, request = tmp_path / "log", infer_request("one.encode", {"image": IMAGES})
    with Server(folder, log, env=env).wait_until_serving() as server, stub_of(server) as stub:
        assert stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: not stub.ServerReady(pb.ServerReadyRequest(), timeout=10).ready)
        assert stub.ServerLive(pb.ServerLiveRequest(), timeout=10).live
        assert not stub.ModelReady(pb.ModelReadyRequest(name="one.encode"), timeout=10).ready
        assert stub.ModelInfer(request, timeout=10).model_version == "1"
        server.process.send_signal(signal.SIGTERM)
