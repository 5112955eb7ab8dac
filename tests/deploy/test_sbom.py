"""The check that an image's SBOM lists what it holds, against one of the tool that makes it."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.metadata import version
from pathlib import Path

import pytest

from deploy.check_image import SBOM, sbom_problems
from tests.support import ROOT

PACKAGES = ("grpcio", "latentserve", "onnxruntime", "prometheus_client")


@pytest.fixture(scope="module")
def sbom(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The SBOM of an environment with the metadata of some packages."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    (site,) = environment.glob("lib/python*/site-packages")
    for name in PACKAGES:
        (metadata,) = Path(sysconfig.get_path("purelib")).glob(f"{name}-*.dist-info")
        shutil.copytree(metadata, site / metadata.name)
    done = subprocess.run(
        [sys.executable, "-m", "cyclonedx_py", "environment", environment / "bin" / "python",
         "--output-reproducible"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
        env={name: value for name, value in os.environ.items() if name != "PYTHONPATH"},
    )  # fmt: skip
    return done.stdout


@pytest.fixture
def installed() -> dict[str, str]:
    return {name: version(name) for name in PACKAGES}


def test_the_tool_lists_what_is_installed(sbom, installed):
    assert sbom_problems(sbom, installed) == []
    listed = {each["name"]: each["version"] for each in json.loads(sbom)["components"]}
    for name in ("grpcio", "onnxruntime"):
        assert listed[name] == installed[name]


def test_each_difference_is_a_problem(sbom, installed):
    del installed["prometheus_client"], installed["onnxruntime"]
    installed |= {"grpcio": "0.1", "h11": "0.16.0"}
    assert sbom_problems(sbom, installed) == [
        f"{SBOM}: grpcio: got {version('grpcio')}, wanted 0.1",
        f"{SBOM}: h11: got none, wanted 0.16.0",
        f"{SBOM}: onnxruntime: got {version('onnxruntime')}, wanted none",
        f"{SBOM}: prometheus-client: got {version('prometheus_client')}, wanted none",
    ]


def test_an_sbom_of_nothing_is_a_problem():
    """Even if the image itself were read as empty."""
    assert [
        problem.split(": ")[1]
        for problem in sbom_problems('{"bomFormat": "CycloneDX", "components": []}', {})
    ] == ["grpcio", "latentserve", "onnxruntime"]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"bomFormat": "SPDX"}'])
def test_what_is_no_sbom_is_a_problem(content, installed):
    (problem,) = sbom_problems(content, installed)
    assert problem.startswith(f"{SBOM}: ")


def test_the_images_have_it_where_the_check_looks():
    text = (ROOT / "Dockerfile").read_text()
    file = Path(SBOM)
    copied = f"/opt/{file.name} {file.parent}/"
    for image in ("server", "trainer"):
        assert f"COPY --link --from={image}-sbom {copied}" in text
