"""Reloading a running server: by SIGHUP and by AdminService, also while it is called."""

import itertools
import os
import shutil
import signal
import threading
import time
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
    return [f"{each.name}/{each.version}" for each in models]


def served(server: Server) -> list[str]:
    with Client(server.target) as client:
        return [f"{each.name}/{each.version}" for each in client.info().models]


def decoded_by(path: Path) -> bytes:
    """What the bundle in a folder makes of Z."""
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


def test_a_new_version_serves_after_a_reload_and_the_old_one_is_dropped(folder, running):
    write_tiny(folder / "one", seed=2)
    assert served(running) == ["one/1"]
    reply = reload(running)
    assert identities(reply.added) == ["one/2"]
    assert identities(reply.removed) == ["one/1"]
    assert identities(reply.serving) == served(running) == ["one/2"]
    assert not reply.refused


def test_sighup_does_the_same(folder, running):
    write_tiny(folder / "two", seed=2)
    os.kill(running.process.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    while served(running) != ["one/1", "two/1"]:
        assert time.monotonic() < deadline, running.log.read_text()
        time.sleep(0.02)
    with Client(running.target) as client:
        assert client.is_serving("two")


def test_a_model_that_vanished_is_dropped(folder, running):
    write_tiny(folder / "two", seed=2)
    reload(running)
    shutil.rmtree(folder / "two")
    assert identities(reload(running).removed) == ["two/1"]
    with Client(running.target) as client:
        assert not client.is_serving("two")
        assert client.is_serving()


@pytest.mark.parametrize("way", ["checksum", "half", "manifest", "missing"])
def test_a_broken_new_version_is_refused_and_the_old_one_serves_on(folder, running, way):
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


def test_wrong_golden_rows_are_refused_at_a_reload_as_at_the_start(folder, running):
    write_tiny(folder / "one", seed=2, golden_error=1.0)
    assert "golden rows" in reload(running).refused[0].problem


def test_a_version_whose_files_go_bad_while_it_serves_serves_on(folder, running):
    damage(folder / "one" / "1", "checksum")
    assert identities(reload(running).serving) == ["one/1"]


def test_without_a_models_folder_nothing_changes(folder, running):
    folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(grpc.RpcError) as caught:
        reload(running)
    assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    os.kill(running.process.pid, signal.SIGHUP)
    time.sleep(0.3)
    assert served(running) == ["one/1"]


def test_without_being_asked_for_there_is_no_admin_service(folder, tmp_path):
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
def test_the_versions_served_can_be_chosen(tmp_path, versions, wanted):
    for seed in (1, 2, 3):
        write_tiny(tmp_path / "models" / "one", seed=seed)
    write_tiny(tmp_path / "models" / "two", seed=4)
    with Server(tmp_path / "models", tmp_path / "log", "--versions", versions) as server:
        server.wait_until_serving()
        assert served(server) == wanted
        with stub_of(server.target) as stub:
            for each in wanted:
                name, version = each.split("/")
                selector = pb.ModelSelector(name=name, version=int(version))
                reply = stub.Decode(pb.DecodeRequest(model=selector, latents=tensor(Z)))
                wanted_bytes = decoded_by(tmp_path / "models" / name / version)
                assert reply.images.tensor.data == wanted_bytes
                assert reply.model.version == int(version)


def test_a_pinned_version_that_is_not_there_is_not_replaced_by_another(tmp_path):
    write_tiny(tmp_path / "models" / "one", seed=1)
    write_tiny(tmp_path / "models" / "two", seed=1)
    arguments = ("--versions", "one=7", "--default-model", "two")
    with Server(tmp_path / "models", tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        assert served(server) == ["two/1"]
        assert "no version 7" in server.log.read_text()
        with Client(server.target) as client:
            assert not client.is_serving("one")


def test_a_stream_stays_with_the_version_it_began_with(folder, running):
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


def test_twenty_reloads_under_eight_callers_fail_no_call_and_mix_up_no_row(folder, running):
    """New versions, removed ones and corrupt ones; each reply is wholly that of one version."""
    wanted = {1: decoded_by(folder / "one" / "1")}
    stop = threading.Event()
    problems: list[str] = []
    calls = itertools.count()
    versions: set[int] = set()

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
                versions.add(reply.model.version)
                if array(reply.images.tensor).tobytes() != right:
                    problems.append(f"wrong rows of version {reply.model.version}")
                next(calls)

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
                # The version that serves vanishes from the folder, and the one before it,
                # where that is sound, takes its place.
                shutil.rmtree(folder / "one" / str(reply.serving[0].version))
                reload(running)
            time.sleep(0.05)
    finally:
        stop.set()
        for thread in callers:
            thread.join(60)
    assert problems == []
    assert refused >= 5
    assert len(versions) >= 10
    assert next(calls) > 200
