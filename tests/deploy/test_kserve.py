"""The overlay for KServe: the Pod that it describes, held against the base's."""

import copy
from pathlib import Path

from service.settings import read_settings
from tests.support.manifests import Document, image_environment, one, problems
from tests.support.manifests import container as base_container

OVERLAY = "overlays/kserve"


def container() -> Document:
    (found,) = one(OVERLAY, "ServingRuntime")["spec"]["containers"]
    return copy.deepcopy(found)


def pod() -> Document:
    """The Pod that KServe makes of the runtime's container and the service's fields of a Pod."""
    runtime = one(OVERLAY, "ServingRuntime")["spec"]
    predictor = dict(one(OVERLAY, "InferenceService")["spec"]["predictor"])
    for of_kserve in ("model", "minReplicas", "maxReplicas"):
        del predictor[of_kserve]
    spec = {**predictor, "containers": [container()], "volumes": runtime["volumes"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "made"}, "spec": spec}


def test_the_pod_is_valid_and_a_mistyped_field_is_found(tmp_path: Path) -> None:
    groups = {"right": [pod()], "container": [pod()], "predictor": [pod()]}
    (broken,) = groups["container"]
    probe = broken["spec"]["containers"][0]["startupProbe"]
    probe["failureTreshold"] = probe.pop("failureThreshold")
    (broken,) = groups["predictor"]
    broken["spec"]["enableServiceLink"] = broken["spec"].pop("enableServiceLinks")
    found = problems(groups, tmp_path)
    assert found["right"] == []
    assert all("failureTreshold" in line for line in found["container"])
    assert all("enableServiceLink" in line for line in found["predictor"])
    assert found["container"]
    assert found["predictor"]


def test_the_server_runs_as_in_the_base() -> None:
    base, here = base_container("base"), container()
    port = here["livenessProbe"]["httpGet"]["port"]
    assert port == read_settings([], image_environment()).http_port
    here["livenessProbe"]["httpGet"]["port"] = "metrics"
    same = ("image", "startupProbe", "readinessProbe", "livenessProbe", "lifecycle", "resources")
    for field in (*same, "volumeMounts"):
        assert here[field] == base[field], field
    assert base["securityContext"].items() <= here["securityContext"].items()
    assert here["securityContext"]["runAsUser"] == 10001


def test_the_grace_period_is_long_enough_for_a_stop() -> None:
    variables = {entry["name"]: entry["value"] for entry in container()["env"]}
    command, *arguments = container()["args"]
    assert command == "serve"
    settings = read_settings(arguments, {**image_environment(), **variables})
    assert settings.models == Path("/mnt/models")
    before = container()["lifecycle"]["preStop"]["sleep"]["seconds"]
    wanted = before + settings.lame_duck + settings.drain_seconds + 15
    assert pod()["spec"]["terminationGracePeriodSeconds"] == wanted
    assert pod()["spec"]["enableServiceLinks"] is False


def test_the_service_uses_the_runtime_and_its_port() -> None:
    runtime = one(OVERLAY, "ServingRuntime")
    model = one(OVERLAY, "InferenceService")["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats
    (port,) = container()["ports"]
    assert port["containerPort"] == read_settings([], image_environment()).grpc_port
