"""`docker compose up` on a real engine: serve at once, train one's own, stop (make test-compose).

Not skipped where there is no engine: who asks for this test wants it to have run.
"""

import re
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from tests.compose.project import BUILD_SECONDS, Project, run
from tests.support import ROOT
from tests.support.http import Caller
from tests.support.waiting import wait_until
from training.data.datasets import load_dataset
from training.data.download import read_files
from training.data.sources import MNIST

# Long enough to be stopped on the way, short enough to wait for.
BUDGET = "15s"


@pytest.fixture(scope="module")
def project(engine: None) -> Iterator[Project]:  # noqa: ARG001 - it has to be up
    """The project, brought up: built, served, trained with an interruption, served again."""
    project = Project(
        LATENTSERVE_BUDGET=BUDGET,
        # The container may be unable to reach the mirrors.
        LATENTSERVE_DATA=str(read_files(MNIST)[0][0].parent),
        LATENTSERVE_DATA_MODE="ro",
    )
    try:
        project("build", timeout=BUILD_SECONDS)
        project.up()
        check_that_it_serves_the_shipped_models(project)
        project("stop", "server")
        project.set(COMPOSE_PROFILES="train")
        project("build", timeout=BUILD_SECONDS)
        interrupt_training(project)
        project.up()
        yield project
    finally:
        project.down()


def check_that_it_serves_the_shipped_models(project: Project) -> None:
    """Checks what `docker compose up` serves before any training."""
    with project.client() as client:
        info = client.info()
        assert info.default_model == "emoji"
        assert [model.name for model in info.models] == [
            "emoji",
            "fonts",
            "mnist",
            "mnist-style",
            "mnist2d",
        ]
        assert client.sample(10, seed=7, label=7, model="mnist").shape == (10, 1, 28, 28)
        assert client.sample(10, seed=7, label=7).shape == (10, 3, 64, 64)
    assert not project("ps", "--all", "--quiet", "trainer").strip()


def interrupt_training(project: Project) -> None:
    """Starts the trainer and stops it once it trains."""
    project("up", "-d", "trainer")

    def trains() -> bool:
        assert project.inspect("trainer")["State"]["Running"], project.logs("trainer")
        return "training dense-gmm on" in project.logs("trainer")

    wait_until(trains, lambda: project.logs("trainer"), seconds=120)
    project("stop", "trainer")
    state = project.inspect("trainer")["State"]
    # 137 would mean that the signal did not reach it.
    assert state["ExitCode"] == 130, (state, project.logs("trainer"))


def test_a_stopped_training_is_resumed(project: Project) -> None:
    logs = project.logs("trainer")
    assert logs.count("training dense-gmm on") == 1
    assert "resuming /runs/mine-mnist-dense-gmm at step" in logs
    assert "/models/mine/1" in logs
    assert project.inspect("trainer")["State"]["ExitCode"] == 0


def test_the_health_check_of_the_server_is_latentserve_check(project: Project) -> None:
    container = project.inspect("server")
    assert container["Config"]["Healthcheck"]["Test"][:3] == ["CMD", "latentserve", "check"]
    assert container["State"]["Health"]["Status"] == "healthy"
    assert project("exec", "-T", "server", "latentserve", "check").strip() == "SERVING"
    wrong = project.attempt("exec", "-T", "server", "latentserve", "check", "--model", "absent")
    assert wrong.returncode == 1


def test_the_host_encodes_decodes_and_samples_through_the_published_port(
    project: Project,
) -> None:
    images = load_dataset("mnist").test.images[:64]
    with project.client() as client:
        info = client.info()
        posterior = client.encode(images, model="mine")
        backwards = client.encode(images[::-1], model="mine")
        decoded = client.decode(posterior.mean, model="mine")
        whole = client.sample(20, seed=7, model="mine")
        halves = [client.sample(10, seed=7, offset=start, model="mine") for start in (0, 10)]
        model = client.model("mine")
    assert (info.default_model, model.name, model.version) == ("emoji", "mine", 1)
    assert [model.name for model in info.models] == [
        "emoji",
        "fonts",
        "mine",
        "mnist",
        "mnist-style",
        "mnist2d",
    ]
    assert posterior.mean.shape == posterior.log_var.shape == (64, model.latent_dim)
    assert decoded.shape == images.shape
    assert 0 <= decoded.min() < decoded.max() <= 1
    # Rows do not depend on each other. A model trained for seconds may map some to one point.
    np.testing.assert_array_equal(posterior.mean, backwards.mean[::-1])
    assert len(np.unique(posterior.mean, axis=0)) > 10
    np.testing.assert_array_equal(whole, np.concatenate(halves))
    assert len(np.unique(whole.reshape(20, -1), axis=0)) > 10


def test_the_ports_are_published_to_this_machine_alone(project: Project) -> None:
    ports = project.inspect("server")["NetworkSettings"]["Ports"]
    assert ports == project.published(GRPC=50051, HTTP=8080, GATEWAY=8000)


def test_the_gateway_answers_by_http(project: Project) -> None:
    gateway = Caller(f"http://{project.address('GATEWAY')}")
    sheet = gateway.get("/v1/models/mnist:sample?count=4&seed=1").picture()
    assert sheet.shape == (62, 62)
    assert gateway.get("/v2/health/ready").json() == {"ready": True}


def test_readiness_and_metrics_are_served_over_http(project: Project) -> None:
    origin = f"http://{project.address('HTTP')}"
    with urllib.request.urlopen(f"{origin}/readyz", timeout=10) as reply:
        assert reply.status == 200
    with urllib.request.urlopen(f"{origin}/metrics", timeout=10) as reply:
        text = reply.read().decode()
    assert 'latentserve_model_info{device="cpu",model="mine",version="1"} 1.0' in text


def test_sighup_reloads_the_models(project: Project) -> None:
    before = project.logs("server").count("reloaded: ")
    project("kill", "-s", "HUP", "server")
    wait_until(
        lambda: project.logs("server").count("reloaded: ") > before, lambda: project.logs("server")
    )
    assert project.inspect("server")["State"]["Running"]


def test_the_server_runs_without_privileges(project: Project) -> None:
    assert project("exec", "-T", "server", "id", "-u").strip() == "10001"
    # Process 1 is the init process, which has the privileges that the server has.
    status = project("exec", "-T", "server", "cat", "/proc/1/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines())
    assert int(fields["Uid"].split()[0]) == 10001
    assert int(fields["CapBnd"], 16) == 0
    assert fields["NoNewPrivs"].strip() == "1"


@pytest.mark.parametrize("path", ["/app/new", "/opt/venv/new", "/models/new"])
def test_the_file_system_of_the_server_is_read_only(project: Project, path: str) -> None:
    # As root: it is the file system that refuses, not the owner of the folder.
    done = project.attempt("exec", "-T", "--user", "0", "server", "touch", path)
    assert done.returncode != 0
    assert "Read-only file system" in done.stderr


def test_the_server_image_is_small_and_contains_only_the_server(project: Project) -> None:
    container = project.inspect("server")
    done = run([sys.executable, ROOT / "deploy" / "check_image.py", container["Config"]["Image"]])
    assert done.returncode == 0, done.stderr
    assert re.search(r"\d MB on top of its base image", done.stdout)
    assert "ORT_DISABLE_TELEMETRY=1" in container["Config"]["Env"]


def test_the_trainer_image_fails_the_check_of_the_server_image(project: Project) -> None:
    image = project.inspect("trainer")["Config"]["Image"]
    done = run([sys.executable, ROOT / "deploy" / "check_image.py", image])
    assert done.returncode == 1
    for problem in (
        r"\d MB, wanted at most",
        "got packages torch",
        "/torch .*wanted no folder torch",
    ):
        assert re.search(problem, done.stderr)


def test_a_stopped_project_drains_and_does_not_train_again(
    project: Project,
) -> None:
    with project.client() as client:
        before = client.model()
    project("stop", "server")
    state = project.inspect("server")["State"]
    assert (state["ExitCode"], state["OOMKilled"]) == (0, False), project.logs("server")
    assert "draining" in project.logs("server")

    project.up()
    logs = project.logs("trainer")
    assert logs.rstrip().endswith("/models holds mine/1: nothing to train")
    assert logs.count("training dense-gmm on") == 1
    assert project.inspect("server")["State"]["Health"]["Status"] == "healthy"
    with project.client() as client:
        after = client.model()
    # The memory of a model is that which its process grew by.
    assert replace(after, memory_bytes=before.memory_bytes) == before
