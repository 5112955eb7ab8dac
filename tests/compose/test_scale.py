"""`docker compose --profile scale up` on a real engine: three servers behind Envoy, under load.

The official image of Envoy is replaced by one of the same version that is made from its wheel.
"""

import ssl
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme
from prometheus_client.parser import text_string_to_metric_families

from latentserve.client import Client, Tls
from tests.compose.project import BUILD_SECONDS, Project, docker, inspect, run
from tests.faults.answers import Answers
from tests.faults.load import Load
from tests.support import ROOT
from tests.support.waiting import wait_until

ENVOY_IMAGE = "latentserve:envoy-test"
REPLICAS = 3
# The label of the image of a new version.
LABEL = "latentserve.test"
# A replica starts beside others that are under load, on two cores.
_START_SECONDS = 90.0


@pytest.fixture(scope="module")
def project(engine: None) -> Iterator[Project]:  # noqa: ARG001 - it has to be up
    """The project, brought up with its profile `scale`."""
    project = Project(
        LATENTSERVE_ENVOY_IMAGE=ENVOY_IMAGE,
        LATENTSERVE_REPLICAS=str(REPLICAS),
        # The one that the callers' right answers are of.
        LATENTSERVE_DEFAULT_MODEL="mnist2d",
        COMPOSE_PROFILES="scale",
    )
    try:
        docker("build", "--tag", ENVOY_IMAGE, str(ROOT / "deploy" / "envoy"), timeout=BUILD_SECONDS)
        project("build", timeout=BUILD_SECONDS)
        project.up()
        yield project
    finally:
        project.down()
        run(["docker", "rmi", ENVOY_IMAGE])


class Health:
    """Watches containers for the time of a `with` block: none of them may be anything but healthy.

    Args:
        project: The project.
        left_out: A container to which something is done.
    """

    def __init__(self, project: Project, left_out: str = ""):
        services = ("server", "replica", "envoy")
        everything = [name for service in services for name in project.containers(service)]
        self._watched = [container for container in everything if container != left_out]
        assert len(self._watched) >= REPLICAS + 1
        self._seen: set[str] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        what = "{{.Name}} {{.State.Status}} {{.State.Health.Status}}"
        while True:
            states = docker("inspect", "--format", what, *self._watched)
            self._seen.update(states.splitlines())
            if self._stopping.wait(1.0):
                return

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        bad = [state for state in self._seen if not state.endswith(" running healthy")]
        assert not bad
        assert len(self._seen) == len(self._watched)


def is_healthy(container: str) -> bool:
    state = inspect(container)["State"]
    return bool(state["Running"] and state["Health"]["Status"] == "healthy")


def kill(container: str) -> None:
    """Kills everything in a container but its init process, which then ends."""
    docker("exec", container, "sh", "-c", "kill -KILL -1 || true")


def calls_of(container: str) -> dict[str, float]:
    """Number of calls that a replica has answered since it started, by transport."""
    (network,) = inspect(container)["NetworkSettings"]["Networks"].values()
    url = f"http://{network['IPAddress']}:8080/metrics"
    with urllib.request.urlopen(url, timeout=10) as reply:
        families = text_string_to_metric_families(reply.read().decode())
    counts = {"grpc": 0.0, "http": 0.0}
    for family in families:
        for sample in family.samples:
            if sample.name == "latentserve_requests_total":
                counts[sample.labels["transport"]] += sample.value
    return counts


def test_only_envoy_is_published(project: Project) -> None:
    ports = project.inspect("envoy")["NetworkSettings"]["Ports"]
    assert ports == project.published(ENVOY=50050, ENVOY_GATEWAY=8000)
    for container in project.containers("replica"):
        published = inspect(container)["NetworkSettings"]["Ports"]
        assert not any(published.values()), published


@pytest.mark.timeout(1200)
def test_replicas_are_killed_drained_and_replaced_without_a_failed_call(
    project: Project, tmp_path: Path
) -> None:
    right = Answers.of(project.address(), tmp_path / "job")
    targets = {
        "Envoy": project.address("ENVOY"),
        "Envoy, HTTP": f"http:{project.address('ENVOY_GATEWAY')}",
    }
    callers = (("unary", True), ("unary", True), ("large", True), ("stream", True), ("job", True))
    with Load(targets, right, tmp_path / "jobs", callers) as load:
        killed, drained, replaced = project.containers("replica")

        with Health(project, left_out=killed):
            kill(killed)
            wait_until(lambda: inspect(killed)["RestartCount"] == 1, lambda: project.logs("envoy"))
            wait_until(lambda: is_healthy(killed), lambda: project.logs("replica"), _START_SECONDS)

        with Health(project, left_out=drained):
            docker("stop", drained)
            assert inspect(drained)["State"]["ExitCode"] == 0, project.logs("replica")
            docker("start", drained)
            wait_until(lambda: is_healthy(drained), lambda: project.logs("replica"), _START_SECONDS)

        with Health(project, left_out=replaced):
            image = inspect(replaced)["Config"]["Image"]
            docker(
                "build", "--target", "server", "--label", f"{LABEL}=2", "--tag", image, str(ROOT)
            )
            # As docs/scaling.md says.
            docker("stop", replaced)
            docker("rm", replaced)
            project.up("--no-recreate", "--no-build")
        labels = [
            inspect(container)["Config"]["Labels"].get(LABEL)
            for container in project.containers("replica")
        ]
        assert sorted(labels, key=str) == ["2", None, None]
        for container in project.containers("replica"):
            wait_until(
                lambda container=container: min(calls_of(container).values()) > 5,
                lambda container=container: calls_of(container),
                _START_SECONDS,
            )
    for reached, tallies in load.tallies().items():
        for (kind, _), tally in tallies.items():
            assert not tally.failures, (reached, kind, tally.failures)
            assert tally.wrong_rows == 0, (reached, kind)
            assert tally.calls > 0, (reached, kind)


def test_envoy_ends_tls_if_told_so(project: Project, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("localhost", "127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "tls.key")
    issued.cert_chain_pems[0].write_to_path(tmp_path / "tls.crt")
    # Envoy runs as another user.
    (tmp_path / "tls.key").chmod(0o644)
    tmp_path.chmod(0o755)
    project.set(
        COMPOSE_FILE="docker-compose.yml:deploy/envoy/compose.tls.yaml",
        LATENTSERVE_EDGE_TLS=str(tmp_path),
    )
    project.up("--no-build", "envoy")
    tls = Tls(authority.cert_pem.bytes())
    with (
        Client(project.address("EDGE"), tls=tls) as edge,
        Client(project.address("ENVOY")) as plain,
    ):
        assert (edge.sample(3, seed=1) == plain.sample(3, seed=1)).all()
    trusting = ssl.create_default_context(cadata=authority.cert_pem.bytes().decode())
    url = f"https://{project.address('EDGE_GATEWAY')}/v2/health/ready"
    with urllib.request.urlopen(url, timeout=10, context=trusting) as reply:
        assert reply.status == 200
