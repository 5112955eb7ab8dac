"""Shared fixtures: a model trained on MNIST and every kind of model untrained, with servers."""

import functools
import multiprocessing
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from latentserve.client import Client
from tests.support.processes import TRANSPORTS, Server, latentserve
from tests.support.shared import cached, made_once

if "PYTEST_XDIST_WORKER" in os.environ:
    # There is one process per CPU: more threads would only contend for the CPUs.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell ignores SIGINT for background jobs, and commands under test would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# On a busy machine examples may be slow: that is no failure. The examples of the suite are the same
# in every run, so that a change fails for what it changes; `make test-long` draws new ones.
_ANY_SPEED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("project", _ANY_SPEED, derandomize=True)
settings.register_profile("search", _ANY_SPEED, max_examples=300, print_blob=True)
settings.load_profile("project")
# Few steps, but on real data and through all phases of a long run.
TRAINING = ("--preset", "dense", "--data", "mnist", "--steps", "500")


@pytest.fixture(scope="session", autouse=True)
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keeps decoded images out of the user's data folder, where public data is still found."""
    with pytest.MonkeyPatch.context() as patch:
        try:
            from training.data.download import data_dir
        except ImportError:  # an environment for the client alone
            yield
            return
        folder = tmp_path_factory.mktemp("data-folder")
        for name in ("mnist", "fashion-mnist"):
            theirs = data_dir() / name
            theirs.mkdir(parents=True, exist_ok=True)
            (folder / name).symlink_to(theirs)
        patch.setenv("LATENTSERVE_DATA_DIR", str(folder))
        yield


@pytest.fixture(scope="session", autouse=True)
def made_ahead(request: pytest.FixtureRequest) -> None:
    """Lets the second process of a run begin with `kinds` while the first makes `trained`."""
    needs = {name for item in request.session.items for name in getattr(item, "fixturenames", ())}
    if os.environ.get("PYTEST_XDIST_WORKER") == "gw1" and {"kinds", "trained"} <= needs:
        request.getfixturevalue("kinds")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, `dense`, and the models folder that it was exported to, `models`."""

    def make(folder: Path) -> None:
        run, model = folder / "dense", folder / "models" / "mnist"
        done = latentserve("train", *TRAINING, "--out", run)
        assert done.returncode == 0, done.stderr
        done = latentserve("export", run, "--to", model, "--samples", "500")
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "trained", cached("trained", make))


@pytest.fixture(scope="session")
def run_folder(trained: Path) -> Path:
    """A finished run of the `dense` preset, 32 latents. Not to be changed."""
    return trained / "dense"


@pytest.fixture(scope="session")
def models(trained: Path) -> Path:
    """A models folder with the run exported as `mnist/1`. Not to be changed: copy it."""
    return trained / "models"


@pytest.fixture(scope="session")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the trained bundle, shared by tests that do not change its state."""
    log = tmp_path_factory.mktemp("server") / "log"
    with Server(models, log) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="session", params=TRANSPORTS)
def each_server(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server of the trained bundle with metrics; tests run once with each transport."""
    log = tmp_path_factory.mktemp(f"server-{request.param}") / "log"
    with Server(models, log, "--transport", request.param, "--http-port", "0") as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport_kind(request: pytest.FixtureRequest) -> str:
    """Name of a transport; the tests of a module run once with each."""
    return request.param


@pytest.fixture
def each_transport(transport_kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Sets the transport of the servers that a test starts; the test runs once with each."""
    monkeypatch.setenv("LATENTSERVE_TRANSPORT", transport_kind)
    return transport_kind


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of `server`."""
    with Client(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def taef2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with `taef2/1`, skipped without its weights. Not to be changed: copy it."""
    if "LATENTSERVE_TAEF2" not in os.environ:
        pytest.skip("LATENTSERVE_TAEF2 is not set: wanted a folder with taef2_encoder.pth")
    from tests.support.taef2 import make

    return made_once(tmp_path_factory, "taef2", cached("taef2", make))


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of model, untrained: `runs/KIND` and `models/KIND/1`. Not to be changed."""

    def make(folder: Path) -> None:
        # Imported here, so that tests of the client alone do not wait for torch.
        from tests.support.blobs import write_blobs
        from tests.support.untrained import KINDS, export_kind

        data = write_blobs(folder / "data")
        # The other processes of the run wait for this fixture: it may have all CPUs.
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(4, os.cpu_count() or 1), context) as pool:
            for _ in pool.map(functools.partial(export_kind, folder, data), KINDS):
                pass

    return made_once(tmp_path_factory, "kinds", cached("kinds", make))


@pytest.fixture(scope="session")
def kinds_server(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of every kind of model; the default one is `delta`."""
    log = tmp_path_factory.mktemp("kinds-server") / "log"
    with Server(kinds / "models", log, "--default-model", "delta") as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def kinds_client(kinds_server: Server) -> Iterator[Client]:
    """A client of `kinds_server`."""
    with Client(kinds_server.target) as connected:
        yield connected
