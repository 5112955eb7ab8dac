"""What the tests share: a model really trained on MNIST, its bundle, a server of it."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from latentserve.client import Client
from tests.support.processes import TRANSPORTS, Server, latentserve
from tests.support.shared import cached, made_once

if "PYTEST_XDIST_WORKER" in os.environ:
    # There are as many processes as CPUs: with two threads in each they would wait in turns.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # As a shell has it for what it runs in the background; commands under test inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A machine that is busy is no finding.
settings.register_profile("project", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("project")
# Few, but on the real data and with every part of the way a long run takes.
TRAINING = ("--preset", "dense", "--data", "mnist", "--steps", "500")


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
    """A server of the trained bundle, shared by all tests that leave it as it is."""
    log = tmp_path_factory.mktemp("server") / "log"
    with Server(models, log) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="session", params=TRANSPORTS)
def each_server(
    request: pytest.FixtureRequest, models: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """Servers of the trained bundle, one of each transport, for tests that run over both."""
    log = tmp_path_factory.mktemp(f"server-{request.param}") / "log"
    with Server(models, log, "--transport", request.param, "--http-port", "0") as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport_kind(request: pytest.FixtureRequest) -> str:
    """One transport, and then the other, each for a module's servers."""
    return request.param


@pytest.fixture
def each_transport(transport_kind: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Has the servers that a test starts use one transport, and then the other."""
    monkeypatch.setenv("LATENTSERVE_TRANSPORT", transport_kind)
    return transport_kind


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    """A client of that server."""
    with Client(server.target) as connected:
        yield connected


@pytest.fixture(scope="session")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kind of model, untrained: `runs/KIND` and `models/KIND/1`. Not to be changed."""

    def make(folder: Path) -> None:
        # Here and not above: the tests of the client alone need not wait for torch.
        from export.export import export
        from tests.support.blobs import write_blobs
        from tests.support.untrained import KINDS, write_run

        data = write_blobs(folder / "data")
        for name, kind in KINDS.items():
            where = data if kind.has_data else f"folder:{folder / 'gone' / 'pictures'}"
            write_run(folder / "runs" / name, kind, where)
            export(folder / "runs" / name, folder / "models" / name, report=lambda _line: None)

    return made_once(tmp_path_factory, "kinds", cached("kinds", make))


@pytest.fixture(scope="session")
def kinds_server(kinds: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of every kind of model; the default one is `delta`."""
    log = tmp_path_factory.mktemp("kinds-server") / "log"
    with Server(kinds / "models", log) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def kinds_client(kinds_server: Server) -> Iterator[Client]:
    """A client of that server."""
    with Client(kinds_server.target) as connected:
        yield connected
