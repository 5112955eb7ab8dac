"""docs/kserve.md: its manifests, and that it names every parameter and operation."""

import re
from typing import Any

import yaml

from service.api.inference import names, parameters
from service.api.inference.infer import REQUESTS
from service.settings import Settings
from tests.support import ROOT

page = (ROOT / "docs" / "kserve.md").read_text()


def manifest(kind: str) -> dict[str, Any]:
    blocks = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    (found,) = [read for read in map(yaml.safe_load, blocks) if read["kind"] == kind]
    return found


def test_the_runtime_runs_the_image_on_its_ports_with_options_that_exist():
    spec = manifest("ServingRuntime")["spec"]
    (container,) = spec["containers"]
    assert container["name"] == "kserve-container"
    command, option, folder = container["args"]
    assert (command, option, folder) == ("serve", "--models", "/mnt/models")
    assert option.removeprefix("--") in Settings.model_fields
    (port,) = container["ports"]
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert f"LATENTSERVE_GRPC_PORT={port['containerPort']}" in dockerfile
    assert 'ENTRYPOINT ["latentserve"]' in dockerfile
    for probe, path in (("readinessProbe", "/readyz"), ("livenessProbe", "/healthz")):
        assert container[probe]["httpGet"]["path"] == path
        assert f"LATENTSERVE_HTTP_PORT={container[probe]['httpGet']['port']}" in dockerfile


def test_the_service_uses_the_runtime():
    runtime, service = manifest("ServingRuntime"), manifest("InferenceService")
    model = service["spec"]["predictor"]["model"]
    assert model["runtime"] == runtime["metadata"]["name"]
    assert model["protocolVersion"] in runtime["spec"]["protocolVersions"]
    formats = [one["name"] for one in runtime["spec"]["supportedModelFormats"]]
    assert model["modelFormat"]["name"] in formats


def test_the_page_has_every_operation_and_says_which_parameters_each_has():
    rows = dict(re.findall(r"^\| ((?:`\w+`,? ?)+) \| ([^|]+) \| ", page, re.MULTILINE))
    stated = {
        name: {operation for operation in REQUESTS if _says(where, operation)}
        for row, where in rows.items()
        for name in re.findall(r"`(\w+)`", row)
    }
    assert stated.pop(parameters.TIMEOUT) == set(REQUESTS)
    wanted: dict[str, set[str]] = {}
    for operation, kind in REQUESTS.items():
        assert f"| `NAME.{operation}` |" in page
        for name in parameters.accepted_by(kind()):
            wanted.setdefault(name, set()).add(operation)
    assert stated == wanted


def _says(where: str, operation: str) -> bool:
    everywhere = where.startswith("all") and not (operation == names.DECODE and "but" in where)
    return everywhere or operation in where.split(", ")
