"""The gateway's OpenAPI document against its routes, and random requests made of it.

schemathesis makes the requests, unmodified: for every route, method, parameter and body of the
document, values that it allows and values that it does not.
"""

import collections
import json
import os
import re
import subprocess
from unittest import mock

import pytest

from service.gateway.app import routes
from service.gateway.calls import Calls
from service.gateway.inference.endpoints import InferenceRoutes
from service.gateway.pages import FILES
from tests.support import ROOT
from tests.support.conditional import write_conditional
from tests.support.environments import python_of_pins
from tests.support.http import Caller
from tests.support.processes import Server
from tests.support.tiny import write_tiny

DOCUMENT = json.loads((ROOT / "service" / "gateway" / FILES["/openapi.json"][0]).read_text())
CHECKS = (
    "not_a_server_error", "status_code_conformance", "content_type_conformance",
    "response_headers_conformance", "response_schema_conformance", "unsupported_method",
    "allow_header_conformance",
)  # fmt: skip
HOOKS = ROOT / "tests" / "support" / "schemathesis_hooks.py"
# Most requests name something that there is; others what schemathesis makes up. Deadlines are long:
# by itself it tries 1e-323 s, and gets 504 for most of its requests.
CONFIGURATION = f"""
hooks = "{HOOKS}"

[dictionaries.models]
values = ["one", "styles"]

[dictionaries.operations]
values = ["one.encode", "one.decode", "one.score", "styles.encode", "styles.sample"]

[dictionaries.versions]
values = [1, "1"]

[parameters]
"path.model" = {{ dictionary = "models", probability = 0.9 }}
"path.name" = {{ dictionary = "operations", probability = 0.9 }}
"path.version" = {{ dictionary = "versions", probability = 0.9 }}
"header.Request-Timeout" = "60"
"""


def test_the_document_has_every_route_and_no_other():
    inference = InferenceRoutes({}, mock.Mock(), mock.Mock(), mock.Mock())
    calls = mock.Mock(spec=Calls)
    table = {
        (method, re.sub(r":\w+}", "}", route.path))
        for route in routes(calls, mock.Mock(), inference, mock.Mock(), mock.Mock())
        for method in route.methods - {"HEAD"}  # Starlette adds it to each GET
    }
    told = {
        (method.upper(), path) for path, methods in DOCUMENT["paths"].items() for method in methods
    }
    assert told == table


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_hundreds_of_requests_find_no_route_that_disagrees_with_the_document(tmp_path):
    made = requests_of(tmp_path, "fuzzing", examples=8)
    assert made.total() >= 300, made
    assert made[200] > 100, made


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_five_thousand_requests_find_no_route_that_disagrees_with_the_document(tmp_path):
    made = requests_of(tmp_path, "fuzzing", examples=120)
    assert made.total() >= 5000, made
    assert made[200] > 2000, made
    print(f"{made.total()} requests: {dict(made)}")


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_the_limits_of_every_schema_are_those_of_the_server(tmp_path):
    made = requests_of(tmp_path, "coverage", examples=1)
    assert made.total() >= 10_000, made
    print(f"{made.total()} requests: {dict(made)}")


def requests_of(folder, phases, *, examples):
    """Lets schemathesis make requests of a server, and checks that it finds nothing.

    Args:
        folder: Folder for models, log and report.
        phases: Its phases: `fuzzing` for random requests, `coverage` for each limit of each schema.
        examples: Random requests for each method of each path.

    Returns:
        How many requests it has made, by the status of the reply.
    """
    python = python_of_pins(ROOT / "tests" / "support" / "requirements" / "schemathesis.txt")
    write_tiny(folder / "models" / "one")
    write_conditional(folder / "models" / "styles")
    (folder / "schemathesis.toml").write_text(CONFIGURATION)
    report = folder / "report.ndjson"
    options = ("--gateway-port", "0", "--http-port", "0")
    with Server(folder / "models", folder / "log", *options) as server:
        server.wait_until_serving()
        done = subprocess.run(
            [
                str(python.with_name("schemathesis")), "run", f"{server.gateway}/openapi.json",
                "--checks", ",".join(CHECKS), "--phases", phases, "--max-examples", str(examples),
                "--seed", "1", "--continue-on-failure", "--report", "ndjson",
                "--report-ndjson-path", str(report),
            ],
            capture_output=True,
            text=True,
            timeout=1700,
            check=False,
            cwd=folder,
            env={**os.environ, "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"},
        )  # fmt: skip
        # 0: neither failures nor errors, such as requests that it cannot make.
        assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
        assert server.metric("latentserve_requests_total", code="INTERNAL") == 0
        assert Caller(server.gateway).get("/v1/models").status == 200
    assert "Traceback" not in (folder / "log").read_text()
    with report.open() as events:
        return collections.Counter(
            exchange["response"]["status_code"]
            for event in map(json.loads, events)
            if "ScenarioFinished" in event
            for exchange in event["ScenarioFinished"]["recorder"]["interactions"].values()
        )
