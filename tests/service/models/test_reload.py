"""Reloads of a running server, by SIGHUP and by AdminService, also under load."""

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest

from bundle import open_bundle
from latentserve.client import Client
from latentserve.v1 import admin_service_pb2 as admin
from latentserve.v1 import admin_service_pb2_grpc
from latentserve.v1 import latent_service_pb2 as pb
from service.models.onnx import Device, Graph
from tests.support.processes import Server
from tests.support.stubs import array, stub_of, tensor
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

Z = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny(tmp_path / "models" / "one", seed=1)
    return tmp_path / "models"


@pytest.fixture
def running(folder: Path, tmp_path: Path) -> Iterator[Server]:
    with Server(folder, tmp_path / "log", "--admin") as server:
        yield server.wait_until_serving()


def reload(server: Server) -> admin.ReloadResponse:
    with grpc.insecure_channel(server.target) as channel:
        return admin_service_pb2_grpc.AdminServiceStub(channel).Reload(
            admin.ReloadRequest(), timeout=60
        )


def identities(models) -> list[str]:
    return [f"{model.name}/{model.version}" for model in models]


def served(server: Server) -> list[str]:
    with Client(server.target) as client:
        return identities(client.info().models)


def decoded_by(path: Path) -> bytes:
    """Bytes of the images that the bundle in a folder decodes Z to."""
    graph = Graph(open_bundle(path).graphs["decoder"], Device("cpu"), 1)
    return graph.run({"z": Z}, ("image",))["image"].tobytes()


def damage(path: Path, way: str) -> None:
    if way == "checksum":
        with (path / "decoder.onnx").open("r+b") as file:
            file.seek(40)
            file.write(b"\xff")
    elif way == "half":
        file = path / "decoder.onnx"
        file.write_bytes(file.read_bytes()[:100])
    elif way == "manifest":
        (path / "manifest.json").write_text("{")
    else:
        (path / "encoder.onnx").unlink()


def test_a_reload_replaces_the_served_version_by_a_new_one(folder, running):
    write_tiny(folder / "one", seed=2)
    assert served(running) == ["one/1"]
    reply = reload(running)
    assert identities(reply.added) == ["one/2"]
    assert identities(reply.removed) == ["one/1"]
    assert identities(reply.serving) == served(running) == ["one/2"]
    assert not reply.refused


def test_sighup_reloads(folder, running):
    write_tiny(folder / "two", seed=2)
    os.kill(running.process.pid, signal.SIGHUP)
    wait_until(lambda: served(running) == ["one/1", "two/1"], running.log.read_text)
    with Client(running.target) as client:
        assert client.is_serving("two")


def test_a_reload_drops_a_model_that_is_gone_from_the_folder(folder, running):
    write_tiny(folder / "two", seed=2)
    reload(running)
    shutil.rmtree(folder / "two")
    assert identities(reload(running).removed) == ["two/1"]
    with Client(running.target) as client:
        assert not client.is_serving("two")
        assert client.is_serving()


@pytest.mark.parametrize("way", ["checksum", "half", "manifest", "missing"])
def test_a_damaged_new_version_is_refused_and_the_old_one_stays_served(folder, running, way):
    damage(write_tiny(folder / "one", seed=2), way)
    reply = reload(running)
    assert identities(reply.refused) == ["one/2"]
    assert reply.refused[0].problem
    assert identities(reply.serving) == ["one/1"]
    assert not reply.removed
    with Client(running.target) as client:
        assert client.is_serving()
        assert client.is_serving("one")
        assert client.decode(Z).tobytes() == decoded_by(folder / "one" / "1")


def test_a_reload_refuses_a_version_with_wrong_golden_rows(folder, running):
    write_tiny(folder / "one", seed=2, golden_error=1.0)
    assert "golden rows" in reload(running).refused[0].problem


def test_a_version_whose_files_are_damaged_later_stays_served(folder, running):
    damage(folder / "one" / "1", "checksum")
    assert identities(reload(running).serving) == ["one/1"]


def test_a_reload_without_the_models_folder_changes_nothing(folder, running):
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(grpc.RpcError) as caught:
        reload(running)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    os.kill(running.process.pid, signal.SIGHUP)
    wait_until(lambda: "nothing changes: " in running.log.read_text())
    assert served(running) == ["one/1"]


@pytest.mark.parametrize("way", ["empty", "damaged names"])
def test_a_reload_that_would_leave_no_model_changes_nothing(folder, running, way):
    """As when the volume is not mounted: the folder is there and empty."""
    if way == "empty":
        shutil.rmtree(folder / "one")
    else:
        (folder / "one").rename(folder / "ONE")
    with pytest.raises(grpc.RpcError, match="nothing changes: no model would be left") as caught:
        reload(running)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    os.kill(running.process.pid, signal.SIGHUP)
    wait_until(lambda: "nothing changes: no model would be left" in running.log.read_text())
    assert served(running) == ["one/1"]
    with Client(running.target) as client:
        assert client.is_serving()
        assert client.decode(Z).shape == (5, 1, 4, 4)


def test_the_admin_service_is_off_by_default(folder, tmp_path):
    with Server(folder, tmp_path / "log").wait_until_serving() as server:
        with pytest.raises(grpc.RpcError) as caught:
            reload(server)
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("versions", "wanted"),
    [
        ("latest", ["one/3", "two/1"]),
        ("all", ["one/3", "one/2", "one/1", "two/1"]),
        ("1", ["one/1", "two/1"]),
        ("one=2", ["one/2", "two/1"]),
        ("all,one=1", ["one/1", "two/1"]),
    ],
)
def test_the_versions_setting_selects_what_is_served(tmp_path, versions, wanted):
    for seed in (1, 2, 3):
        write_tiny(tmp_path / "models" / "one", seed=seed)
    write_tiny(tmp_path / "models" / "two", seed=4)
    with Server(tmp_path / "models", tmp_path / "log", "--versions", versions) as server:
        server.wait_until_serving()
        assert served(server) == wanted
        with stub_of(server.target) as stub:
            for identity in wanted:
                name, version = identity.split("/")
                selector = pb.ModelSelector(name=name, version=int(version))
                reply = stub.Decode(pb.DecodeRequest(model=selector, latents=tensor(Z)))
                wanted_bytes = decoded_by(tmp_path / "models" / name / version)
                assert reply.images.tensor.data == wanted_bytes
                assert reply.model.version == int(version)


def test_a_pinned_version_that_is_missing_is_not_replaced_by_another(tmp_path):
    write_tiny(tmp_path / "models" / "one", seed=1)
    write_tiny(tmp_path / "models" / "two", seed=1)
    arguments = ("--versions", "one=7", "--default-model", "two")
    with Server(tmp_path / "models", tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        assert served(server) == ["two/1"]
        assert "no version 7" in server.log.read_text()
        with Client(server.target) as client:
            assert not client.is_serving("one")


def test_a_stream_keeps_the_version_that_it_began_with_across_a_reload(folder, running):
    wanted = decoded_by(folder / "one" / "1")
    reloaded = threading.Event()

    def requests() -> Iterator[pb.DecodeStreamRequest]:
        request = pb.DecodeStreamRequest(request=pb.DecodeRequest(latents=tensor(Z)))
        yield request
        reloaded.wait(60)
        yield request

    with stub_of(running.target) as stub:
        call = stub.DecodeStream(requests())
        first = next(call).response
        write_tiny(folder / "one", seed=2)
        reload(running)
        assert served(running) == ["one/2"]
        reloaded.set()
        second = next(call).response
    for reply in (first, second):
        assert reply.model.version == 1
        assert reply.images.tensor.data == wanted


def test_reloads_under_load_fail_no_call_and_mix_no_versions_in_a_reply(folder, running):
    """Twenty reloads under eight callers, of new, removed and damaged versions."""
    wanted = {1: decoded_by(folder / "one" / "1")}
    stop = threading.Event()
    problems: list[str] = []
    answered: list[int] = []  # the version of each reply

    def caller(rows: slice) -> None:
        size = 4 * 16
        with stub_of(running.target) as stub:
            while not stop.is_set():
                try:
                    reply = stub.Decode(pb.DecodeRequest(latents=tensor(Z[rows])), timeout=30)
                except grpc.RpcError as error:
                    problems.append(str(error))
                    return
                right = wanted[reply.model.version][size * rows.start : size * rows.stop]
                if array(reply.images.tensor).tobytes() != right:
                    problems.append(f"wrong rows of version {reply.model.version}")
                answered.append(reply.model.version)

    callers = [
        threading.Thread(target=caller, args=(slice(index % 3, index % 3 + 2),))
        for index in range(8)
    ]
    for thread in callers:
        thread.start()
    refused = 0
    try:
        for turn in range(20):
            path = write_tiny(folder / "one", seed=10 + turn)
            version = int(path.name)
            wanted[version] = decoded_by(path)
            if turn % 4 == 3:
                damage(path, ("checksum", "half", "manifest", "missing", "checksum")[turn // 4])
            reply = reload(running)
            refused += len(reply.refused)
            if turn % 5 == 4:
                # The served version is removed; the highest intact one takes its place.
                shutil.rmtree(folder / "one" / str(reply.serving[0].version))
                reload(running)
            enough = len(answered) + 20
            wait_until(lambda enough=enough: problems or len(answered) >= enough)
    finally:
        stop.set()
        for thread in callers:
            thread.join(60)
    assert problems == []
    assert refused >= 5
    assert len(set(answered)) >= 10
