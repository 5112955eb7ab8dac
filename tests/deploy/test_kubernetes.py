"""deploy/kubernetes/: rendered, validated against schemas, and held against the server's facts.

There is no cluster here: nothing is applied.
"""

import copy
from pathlib import Path
from typing import Any

import pytest

from service.settings import Settings, read_settings
from tests.support import ROOT
from tests.support.manifests import (
    VERSIONS,
    Document,
    container,
    documents,
    environment,
    image_environment,
    kustomizations,
    one,
    problems,
)

# A field of each kind that is used, to be mistyped: where it is, with indices of lists.
FIELDS: dict[str, str] = {
    "ConfigMap": "data",
    "Deployment": "spec.template.spec.containers.0.livenessProbe.httpGet.path",
    "HorizontalPodAutoscaler": "spec.metrics.0.pods.target.averageValue",
    "InferenceService": "spec.predictor.model.storageUri",
    "NetworkPolicy": "spec.ingress.0.ports.0.protocol",
    "PodDisruptionBudget": "spec.maxUnavailable",
    "PyTorchJob": "spec.pytorchReplicaSpecs.Worker.replicas",
    "PrometheusRule": "spec.groups.0.rules.0.expr",
    "ScaledObject": "spec.triggers.0.metadata.threshold",
    "Service": "spec.ports.0.targetPort",
    "ServiceAccount": "automountServiceAccountToken",
    "ServingRuntime": "spec.supportedModelFormats.0.autoSelect",
    "ServiceMonitor": "spec.endpoints.0.port",
}


def deployments() -> list[str]:
    """The kustomizations that deploy the server."""
    return [name for name in kustomizations() if name not in ("overlays/kserve", "overlays/train")]


def mistyped(document: Document) -> Document:
    """A copy with one field's name misspelt."""
    changed = copy.deepcopy(document)
    *way, last = FIELDS[document["kind"]].split(".")
    place: Any = changed
    for step in way:
        place = place[int(step)] if isinstance(place, list) else place[step]
    place[f"{last}x"] = place.pop(last)
    return changed


def has_field(document: Document) -> bool:
    try:
        mistyped(document)
    except (KeyError, IndexError):
        return False
    return True


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The problems of everything that is rendered, and of each kind with a mistyped field."""
    groups = {name: documents(name) for name in kustomizations()}
    every = [document for group in groups.values() for document in group]
    for kind in {document["kind"] for document in every}:
        assert kind in FIELDS, f"no field to mistype for {kind}"
        sample = next(found for found in every if found["kind"] == kind and has_field(found))
        groups[f"mistyped-{kind}"] = [mistyped(sample)]
    return problems(groups, tmp_path_factory.mktemp("manifests"))


@pytest.mark.parametrize("name", kustomizations())
def test_every_document_is_valid(found: dict[str, list[str]], name: str) -> None:
    assert found[name] == []


@pytest.mark.parametrize("kind", sorted(FIELDS))
def test_a_mistyped_field_is_found(found: dict[str, list[str]], kind: str) -> None:
    lines = found[f"mistyped-{kind}"]
    assert any(FIELDS[kind].rpartition(".")[2] + "x" in line for line in lines), lines


def test_a_kind_without_a_schema_is_a_problem(tmp_path: Path) -> None:
    unknown = {"apiVersion": "example.org/v1", "kind": "Thing", "metadata": {"name": "one"}}
    lines = problems({"one": [unknown]}, tmp_path)["one"]
    assert len(lines) == len(VERSIONS)
    assert all("find schema for kind Thing" in line for line in lines)


@pytest.mark.parametrize("name", deployments())
def test_the_variables_are_settings_with_valid_values(name: str) -> None:
    variables = environment(name)
    allowed = {f"LATENTSERVE_{setting.upper()}" for setting in Settings.model_fields}
    assert variables.keys() <= allowed
    read_settings([], {**image_environment(), **variables})


@pytest.mark.parametrize("name", deployments())
def test_the_grace_period_is_long_enough_for_a_stop(name: str) -> None:
    settings = read_settings([], {**image_environment(), **environment(name)})
    spec = one(name, "Deployment", "latentserve")["spec"]["template"]["spec"]
    before = container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert before == 5
    wanted = before + settings.lame_duck + settings.drain_seconds + 15
    assert spec["terminationGracePeriodSeconds"] == wanted


@pytest.mark.parametrize("name", deployments())
def test_the_probes_fit_the_server(name: str) -> None:
    deployed = container(name)
    settings = read_settings([], {**image_environment(), **environment(name)})
    ports = {port["name"]: port["containerPort"] for port in deployed["ports"]}
    assert ports == {
        "grpc": settings.grpc_port,
        "gateway": settings.gateway_port,
        "metrics": settings.http_port,
    }
    assert deployed["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "metrics"}
    for probe in ("startupProbe", "readinessProbe"):
        if settings.tls_cert is None:
            assert deployed[probe]["grpc"] == {"port": settings.grpc_port}
            assert "httpGet" not in deployed[probe]
        else:
            # The kubelet's gRPC probe knows no TLS.
            assert deployed[probe]["httpGet"] == {"path": "/readyz", "port": "metrics"}
            assert "grpc" not in deployed[probe]


@pytest.mark.parametrize("name", deployments())
def test_the_pods_have_no_privileges(name: str) -> None:
    spec = one(name, "Deployment", "latentserve")["spec"]["template"]["spec"]
    assert spec["enableServiceLinks"] is False
    assert spec["automountServiceAccountToken"] is False
    assert spec["serviceAccountName"] == one(name, "ServiceAccount")["metadata"]["name"]
    pod = spec["securityContext"]
    assert (pod["runAsNonRoot"], pod["runAsUser"]) == (True, 10001)
    assert "USER 10001:10001" in (ROOT / "Dockerfile").read_text()
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    resources = container(name)["resources"]
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert "cpu" in resources["limits"]  # the compute threads are counted by it


def selects(selector: dict[str, str], labels: dict[str, str]) -> bool:
    return selector.items() <= labels.items()


@pytest.mark.parametrize("name", deployments())
def test_services_budget_and_policy_select_the_servers(name: str) -> None:
    template = one(name, "Deployment", "latentserve")["spec"]["template"]
    labels = template["metadata"]["labels"]
    ports = {port["name"] for port in container(name)["ports"]}
    for service in ("latentserve", "latentserve-cluster"):
        spec = one(name, "Service", service)["spec"]
        assert selects(spec["selector"], labels)
        assert {port["targetPort"] for port in spec["ports"]} <= ports
    assert one(name, "Service", "latentserve")["spec"]["clusterIP"] == "None"
    assert "clusterIP" not in one(name, "Service", "latentserve-cluster")["spec"]
    budget = one(name, "PodDisruptionBudget", "latentserve")["spec"]
    assert selects(budget["selector"]["matchLabels"], labels)
    policy = one(name, "NetworkPolicy", "latentserve")["spec"]
    assert selects(policy["podSelector"]["matchLabels"], labels)
    opened = {port["port"] for rule in policy["ingress"] for port in rule["ports"]}
    assert {"grpc", "gateway"} <= opened <= ports


@pytest.mark.parametrize("name", kustomizations())
def test_no_service_sets_a_variable_that_is_a_setting(name: str) -> None:
    # In other Pods, Kubernetes sets NAME_PORT for a Service of that name.
    taken = {f"LATENTSERVE_{setting.upper()}" for setting in Settings.model_fields}
    for document in documents(name):
        if document["kind"] == "Service":
            made = document["metadata"]["name"].upper().replace("-", "_") + "_PORT"
            assert made not in taken
