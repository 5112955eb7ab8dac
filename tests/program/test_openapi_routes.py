"""Random requests made of the gateway's OpenAPI document, by schemathesis, unmodified."""

import subprocess

import pytest

from tests.support import ROOT
from tests.support.conditional import write_conditional
from tests.support.environments import python_of_pins
from tests.support.http import Caller
from tests.support.processes import Server
from tests.support.tiny import write_tiny

CHECKS = (
    "status_code_conformance", "content_type_conformance", "response_schema_conformance",
    "unsupported_method",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_no_route_disagrees_with_the_document_and_none_fails(tmp_path):
    python = python_of_pins(ROOT / "tests" / "support" / "requirements" / "schemathesis.txt")
    write_tiny(tmp_path / "models" / "one")
    write_conditional(tmp_path / "models" / "styles")
    options = ("--gateway-port", "0", "--http-port", "0")
    with Server(tmp_path / "models", tmp_path / "log", *options) as server:
        server.wait_until_serving()
        done = subprocess.run(
            [
                str(python.with_name("schemathesis")), "run", f"{server.gateway}/openapi.json",
                "--checks", ",".join(CHECKS), "--phases", "coverage", "--max-examples", "10",
                "--seed", "1", "--continue-on-failure",
            ],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=tmp_path,
        )  # fmt: skip
        summary = done.stdout[-6000:]
        # Media types that it cannot make bodies of are errors to it, and not failures.
        assert "Failures:" not in summary, summary
        assert "generated" in summary, summary + done.stderr[-2000:]
        assert server.metric("latentserve_requests_total", code="INTERNAL") == 0
        asked = server.metric("latentserve_requests_total", transport="http")
        assert asked > 1000, asked
        assert Caller(server.gateway).get("/v1/models").status == 200
    assert "Traceback" not in (tmp_path / "log").read_text()
