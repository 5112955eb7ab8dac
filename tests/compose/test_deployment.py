"""The container of the Kubernetes Deployment on a real engine, as the kubelet would run it.

With the environment, user, limits, probes and `preStop` of deploy/kubernetes/base; the scheduler,
the network and the kubelet itself are not here.
"""

import secrets
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from latentserve.client import Client
from tests.compose.project import BUILD_SECONDS, docker, inspect
from tests.faults.answers import Answers
from tests.faults.load import Load
from tests.support import ROOT
from tests.support.manifests import Document, container, environment, one

IMAGE = "latentserve:deployment-test"
# The one that the callers' right answers are of.
MODEL = {"LATENTSERVE_DEFAULT_MODEL": "mnist2d"}


def pod_spec() -> Document:
    return dict(one("base", "Deployment")["spec"]["template"]["spec"])


def in_bytes(quantity: str) -> int:
    """A quantity of Kubernetes such as 64Mi."""
    units = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30}
    return int(quantity[:-2]) * units[quantity[-2:]]


class Pod:
    """A container with what the manifest says of it, and its probes.

    Attributes:
        container: Its identifier.
        address: Its address in the engine's network, which this machine reaches.
    """

    def __init__(self) -> None:
        deployed, spec = container("base"), pod_spec()
        security = {**spec["securityContext"], **deployed["securityContext"]}
        limits = deployed["resources"]["limits"]
        (volume,) = spec["volumes"]
        (mount,) = deployed["volumeMounts"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert security["readOnlyRootFilesystem"]
        assert not security["allowPrivilegeEscalation"]
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}
        size = in_bytes(volume["emptyDir"]["sizeLimit"])
        variables = {**environment("base"), **MODEL}
        self._probes = {
            name: deployed[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
        }
        self._ports = {port["name"]: port["containerPort"] for port in deployed["ports"]}
        self.container = docker(
            "run", "--detach",
            "--name", f"latentserve-pod-{secrets.token_hex(4)}",
            "--user", f"{security['runAsUser']}:{security['runAsGroup']}",
            "--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges",
            "--cpus", limits["cpu"],
            "--memory", str(in_bytes(limits["memory"])),
            # As Kubernetes does: a Pod has no swap.
            "--memory-swap", str(in_bytes(limits["memory"])),
            "--tmpfs", f"{mount['mountPath']}:size={size},mode=1777",
            *(f"--env={name}={value}" for name, value in variables.items()),
            IMAGE,
        ).strip()  # fmt: skip
        networks = inspect(self.container)["NetworkSettings"]["Networks"]
        self.address = networks["bridge"]["IPAddress"]

    @property
    def target(self) -> str:
        """Address for calls by gRPC."""
        return f"{self.address}:{self._ports['grpc']}"

    @property
    def state(self) -> dict[str, Any]:
        """State of the container."""
        state: dict[str, Any] = inspect(self.container)["State"]
        return state

    def passes(self, probe: str) -> bool:
        """Tries a probe once, as the kubelet does.

        Args:
            probe: `startup`, `readiness` or `liveness`.
        """
        spec = self._probes[probe]
        seconds = spec.get("timeoutSeconds", 1)
        if "grpc" in spec:
            with grpc.insecure_channel(f"{self.address}:{spec['grpc']['port']}") as channel:
                health = health_pb2_grpc.HealthStub(channel)  # type: ignore[no-untyped-call]
                try:
                    reply = health.Check(health_pb2.HealthCheckRequest(), timeout=seconds)
                except grpc.RpcError:
                    return False
                return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
        http = spec["httpGet"]
        url = f"http://{self.address}:{self._ports[http['port']]}{http['path']}"
        try:
            with urllib.request.urlopen(url, timeout=seconds) as reply:
                return bool(reply.status == 200)
        except (OSError, urllib.error.HTTPError):
            return False

    def start(self) -> None:
        """Waits for the startup probe to pass."""
        spec = self._probes["startup"]
        for _ in range(spec["failureThreshold"]):
            if self.passes("startup"):
                return
            assert self.state["Running"], docker("logs", self.container)
            time.sleep(spec["periodSeconds"])
        raise AssertionError(docker("logs", self.container))

    def delete(self) -> None:
        """Ends the container as the kubelet does: preStop, SIGTERM, and SIGKILL in the end."""
        before = container("base")["lifecycle"]["preStop"]["sleep"]["seconds"]
        time.sleep(before)
        assert self.passes("readiness"), "not yet: SIGTERM comes now"
        grace = pod_spec()["terminationGracePeriodSeconds"] - before
        docker("stop", "--time", str(grace), self.container)

    def remove(self) -> None:
        """Removes the container, whatever it does."""
        docker("rm", "--force", "--volumes", self.container)


@pytest.fixture(scope="module")
def pods(engine: None) -> Iterator[list[Pod]]:  # noqa: ARG001 - it has to be up
    """As many as the Deployment has replicas, started."""
    docker("build", "--target", "server", "--tag", IMAGE, str(ROOT), timeout=BUILD_SECONDS)
    pods: list[Pod] = []
    try:
        for _ in range(one("base", "Deployment")["spec"]["replicas"]):
            pods.append(Pod())
        for pod in pods:
            pod.start()
        yield pods
    finally:
        for pod in pods:
            pod.remove()
        docker("rmi", IMAGE)


@pytest.fixture(scope="module")
def right(pods: list[Pod], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """The right answers, of a Pod that nothing disturbs yet."""
    return Answers.of(pods[0].target, tmp_path_factory.mktemp("right") / "job")


def test_its_probes_pass(pods: list[Pod]) -> None:
    for pod in pods:
        for probe in ("startup", "readiness", "liveness"):
            assert pod.passes(probe), probe
        assert docker("exec", pod.container, "id", "-u").strip() == "10001"


def test_an_overload_is_not_ended_by_the_memory_limit(
    pods: list[Pod], right: Answers, tmp_path: Path
) -> None:
    """16 callers of 4,000 rows, some of which are refused and call again."""
    pod = pods[0]
    callers = (("large", True), ("upload", True)) * 8
    with (
        Client(pod.target) as client,
        Load({"alone": pod.target}, right, tmp_path / "jobs", callers, client) as load,
    ):
        # Each of these, if it failed, would be one of the three in a row that restart a Pod.
        for _ in range(5):
            time.sleep(2.0)
            assert pod.passes("liveness")
    assert (pod.state["Running"], pod.state["OOMKilled"]) == (True, False)
    assert pod.passes("readiness")
    for tally in load.tallies()["alone"].values():
        assert tally.calls > 0
        assert not tally.failures, tally.failures
        assert tally.wrong_rows == 0


def test_a_pod_is_deleted_under_load_without_a_failed_call(
    pods: list[Pod], right: Answers, tmp_path: Path
) -> None:
    """Also of callers that never retry; they know all Pods, as by the headless Service."""
    leaving, staying = pods
    target = "ipv4:" + ",".join(pod.target for pod in pods)
    with Load({"all": target}, right, tmp_path / "jobs") as load:
        leaving.delete()
        time.sleep(1.0)
    assert (leaving.state["ExitCode"], leaving.state["OOMKilled"]) == (0, False)
    assert staying.passes("readiness")
    for (kind, retries), tally in load.tallies()["all"].items():
        assert tally.calls > 0
        assert not tally.failures, (kind, retries, tally.failures)
        assert tally.wrong_rows == 0, kind
