"""Calls without a version to a model whose versions share them (canary)."""

import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bundle import write_pin
from latentserve.client import Client
from latentserve.v1 import latent_service_pb2 as pb
from service.models.routes import Route
from tests.support.in_process import refused_start, run_cli
from tests.support.processes import Server
from tests.support.stubs import images, stub_of, tensor
from tests.support.tiny import write_tiny

ROUTE = Route(((1, 70), (2, 30)))
PIXELS = np.random.default_rng(0).random((2, 1, 4, 4), np.float32)
Z = np.zeros((1, 3), np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("routed") / "models"
    for seed in (1, 2, 3):
        write_tiny(folder / "one", seed=seed)
    write_tiny(folder / "two", seed=4)
    return folder


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    arguments = ("--route", "one=1:70,2:30", "--versions", "latest", "--http-port", "0")
    with Server(folder, folder.with_name("log"), *arguments) as server:
        yield server.wait_until_serving()


@pytest.fixture
def stub(server):
    with stub_of(server.target) as stub:
        yield stub


def test_the_seed_of_a_call_chooses_the_version_in_every_rpc(stub):
    seeds = [*range(12), 2**64 - 1]
    wanted = [ROUTE.version(seed) for seed in seeds]
    assert set(wanted) == {1, 2}
    given = images(PIXELS)
    for call in (
        lambda seed: stub.Sample(pb.SampleRequest(count=1, seed=seed)),
        lambda seed: stub.Sample(pb.SampleRequest(count=1, seed=seed, offset=99)),
        lambda seed: stub.Encode(pb.EncodeRequest(images=given, seed=seed, draw=True)),
        lambda seed: stub.Encode(pb.EncodeRequest(images=given, seed=seed)),
        lambda seed: stub.Reconstruct(pb.ReconstructRequest(images=given, seed=seed)),
        lambda seed: stub.Score(pb.ScoreRequest(images=given, seed=seed, draws=1)),
        lambda seed: (
            next(
                stub.SampleStream(
                    pb.SampleStreamRequest(request=pb.SampleRequest(count=1, seed=seed))
                )
            ).response
        ),
        lambda seed: (
            next(
                stub.EncodeStream(
                    iter(
                        [pb.EncodeStreamRequest(request=pb.EncodeRequest(images=given, seed=seed))]
                    )
                )
            ).response
        ),
    ):
        assert [call(seed).model.version for seed in seeds] == wanted


def test_calls_without_a_seed_are_shared_at_random(stub):
    counts = Counter(
        stub.Decode(pb.DecodeRequest(latents=tensor(Z))).model.version for _ in range(400)
    )
    assert 70 < counts[2] < 170
    counts = Counter(
        stub.Encode(pb.EncodeRequest(images=images(PIXELS))).model.version for _ in range(400)
    )
    assert 70 < counts[2] < 170


def test_the_seed_that_a_reply_states_leads_to_the_same_version(stub):
    replies = [stub.Sample(pb.SampleRequest(count=1)) for _ in range(20)]
    assert {reply.model.version for reply in replies} == {1, 2}
    for reply in replies:
        again = stub.Sample(pb.SampleRequest(count=1, seed=reply.seed))
        assert again.model.version == reply.model.version
        assert again.images.tensor.data == reply.images.tensor.data


def test_a_stream_stays_with_the_version_of_its_first_message(stub):
    for seed in (2, 3, 7):
        requests = [
            pb.EncodeStreamRequest(request=pb.EncodeRequest(images=images(PIXELS), seed=number))
            for number in (seed, *range(10))
        ]
        replies = list(stub.EncodeStream(iter(requests)))
        assert {reply.response.model.version for reply in replies} == {ROUTE.version(seed)}
    for _ in range(10):
        requests = [pb.DecodeStreamRequest(request=pb.DecodeRequest(latents=tensor(Z)))] * 5
        versions = {reply.response.model.version for reply in stub.DecodeStream(iter(requests))}
        assert len(versions) == 1


def test_all_chunks_of_a_client_s_call_are_answered_by_one_version(folder, tmp_path):
    pixels = np.random.default_rng(0).random((30, 1, 4, 4), np.float32)
    arguments = ("--max-rows", "4", "--route", "one=1:50,2:50")
    with Server(folder, tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        with Client(server.target) as client:
            wanted = {client.encode(pixels, version=number).mean.tobytes() for number in (1, 2)}
            assert {client.encode(pixels).mean.tobytes() for _ in range(20)} == wanted


def test_a_version_that_is_named_answers(stub):
    for version in (1, 2, 3):
        selector = pb.ModelSelector(name="one", version=version)
        for seed in range(5):
            reply = stub.Sample(pb.SampleRequest(model=selector, count=1, seed=seed))
            assert reply.model.version == version


def test_other_models_are_not_routed(stub):
    selector = pb.ModelSelector(name="two")
    assert stub.Sample(pb.SampleRequest(model=selector, count=1)).model.version == 1


def test_the_server_describes_its_routes_and_the_main_version(stub):
    info = stub.GetServerInfo(pb.GetServerInfoRequest())
    assert [(route.name, route.version, route.percent) for route in info.routes] == [
        ("one", 1, 70), ("one", 2, 30),
    ]  # fmt: skip
    assert [(model.name, model.version) for model in info.models] == [
        ("one", 3), ("one", 2), ("one", 1), ("two", 1),
    ]  # fmt: skip
    assert all(model.memory_bytes > 0 for model in info.models)
    for _ in range(10):
        assert stub.GetModel(pb.GetModelRequest()).model.version == 1


def test_the_metrics_compare_the_versions(server, stub):
    def count(version):
        labels = {"model": "one", "version": version}
        return server.metric("latentserve_routed_requests_total", **labels)

    before = [count(version) for version in "123"]
    for seed in range(20):
        stub.Sample(pb.SampleRequest(count=1, seed=seed))
    stub.Sample(pb.SampleRequest(model=pb.ModelSelector(version=3), count=1))
    second = sum(ROUTE.version(seed) == 2 for seed in range(20))
    after = [count(version) for version in "123"]
    assert np.subtract(after, before).tolist() == [20 - second, second, 0]


def test_a_route_to_a_version_that_is_not_there_prevents_the_start(folder):
    done = refused_start("--models", folder, "--route", "one=1:90,9:10")
    assert done.returncode == 2
    assert "latentserve serve: route: one/9 is not served: no version 9 in " in done.stderr


def test_a_reload_that_breaks_a_route_changes_nothing(folder, tmp_path):
    models = tmp_path / "models"
    shutil.copytree(folder, models)
    arguments = ("--admin", "--workers", "2", "--route", "one=1:90,2:10")
    with Server(models, tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        shutil.rmtree(models / "one" / "2")
        write_tiny(models / "three", seed=5)
        done = run_cli("reload", "--server", server.target)
        assert done.returncode == 1
        assert "nothing changes: route: one/2 is not served: no version 2 in" in done.stderr
        with Client(server.target) as client:
            names = {(model.name, model.version) for model in client.info().models}
            assert names == {("one", 3), ("one", 2), ("one", 1), ("two", 1)}
            # A rollback ends the canary, which then needs no version 2.
            write_pin(models / "one", 1)
            done = run_cli("reload", "--server", server.target)
            assert done.stdout.startswith("serving  one/1, three/1, two/1\n")
            assert {client.sample(1, seed=seed).shape for seed in range(9)} == {(1, 1, 4, 4)}
