"""Clients of Triton and KServe, unmodified, each in an environment and a process of its own.

In this process, two definitions of the package `inference` would clash.
"""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import trustme
from numpy.typing import NDArray

from latentserve.client import Client, Tls
from tests.support import ROOT
from tests.support.conditional import Conditional, write_conditional
from tests.support.environments import python_of_pins
from tests.support.processes import Server
from tests.support.spatial import Spatial, write_spatial
from tests.support.taef2 import needs_taef2, photograph
from tests.support.tiny import write_tiny

# The first test of a client waits for its environment.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]

TOKEN = "0123456789abcdef"
#: Of each client its environment, its program in `tests/bare`, and more that this is told.
CLIENTS = {
    "tritonclient.grpc": ("tritonclient", "check_tritonclient", {"flavour": "blocking"}),
    "tritonclient.grpc.aio": ("tritonclient", "check_tritonclient", {"flavour": "aio"}),
    "tritonclient.http": ("tritonclient", "check_tritonclient_http", {"flavour": "blocking"}),
    "tritonclient.http.aio": ("tritonclient", "check_tritonclient_http", {"flavour": "aio"}),
    "InferenceGRPCClient": ("kserve", "check_kserve", {}),
    "InferenceRESTClient": ("kserve", "check_kserve_rest", {}),
}
ALL = ["decode", "encode", "reconstruct", "sample", "score"]
#: The models of `folder`: their operations, and whether they are conditional.
MODELS: dict[str, dict[str, Any]] = {
    "one": {"operations": ALL, "conditional": False},
    "classes": {"operations": ALL, "conditional": True},
    "raw": {"operations": ALL[:-1], "conditional": False},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_tiny(root / "one")
    write_conditional(root / "classes", Conditional())
    write_spatial(root / "raw", Spatial(likelihood="none"))
    return root


@pytest.fixture(scope="module")
def inputs() -> dict[str, NDArray[Any]]:
    """Images of each model, and the classes of those of the conditional one."""
    rng = np.random.default_rng(5)
    return {
        "one.image": rng.random((3, 1, 4, 4), np.float32),
        "classes.image": rng.integers(0, 256, (3, 1, 4, 4)).astype(np.float32) / 255,
        "classes.label": np.array([0, 3, 1]),
        "raw.image": rng.random((2, 3, 8, 16), np.float32),
    }


@pytest.mark.parametrize(
    ("transport", "secure"),
    [("http2", True), ("grpcio", False)],
    ids=["http2, tls and token", "grpcio, plain"],
)
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_does_its_whole_round(name, secure, transport, folder, inputs, tmp_path):
    arguments, ca = ["--transport", transport, "--gateway-port", "0"], ""
    if secure:
        more, ca = secured(tmp_path)
        arguments += more
    with Server(folder, tmp_path / "log", *arguments) as server:
        found = play(name, server, inputs, MODELS, tmp_path, token=TOKEN if secure else "", ca=ca)
        tls = Tls(ca=Path(ca)) if ca else None
        with Client(server.target, tls=tls, token=TOKEN if secure else None) as client:
            assert_agrees(client, found, inputs, MODELS)


@needs_taef2
@pytest.mark.parametrize("name", CLIENTS)
def test_a_client_encodes_and_decodes_with_a_model_of_others(name, taef2, tmp_path):
    models = {"taef2": {"operations": ALL[:3], "conditional": False}}
    image = photograph("chelsea")[None, :, :128, :192].astype(np.float32) / 255
    inputs = {"taef2.image": np.ascontiguousarray(image)}
    with Server(taef2, tmp_path / "log", "--gateway-port", "0").wait_until_serving() as server:
        found = play(name, server, inputs, models, tmp_path)
        assert found["taef2.encode.mean"].shape == (1, 32, 16, 24)
        with Client(server.target) as client:
            assert_agrees(client, found, inputs, models)


@pytest.mark.parametrize("environment", ["tritonclient", "kserve"])
def test_the_example_of_the_page_prints_what_the_page_says(environment, tmp_path):
    page = (ROOT / "docs" / "kserve.md").read_text()
    blocks = re.findall(r"^```(?:python|text)\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    examples = dict(zip(blocks[::2], blocks[1::2], strict=True))
    (example,) = [code for code in examples if re.search(rf"(import|from) {environment}", code)]
    with Server(ROOT / "models", tmp_path / "log").wait_until_serving() as server:
        done = subprocess.run(
            [str(python_of(environment)), "-c", example.replace("localhost:50051", server.target)],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            cwd=tmp_path,
        )
    assert done.returncode == 0, done.stderr[-5000:]
    assert done.stdout == examples[example]


def secured(folder: Path) -> tuple[list[str], str]:
    """Options of a server with TLS and a token, and the path of its certificate authority."""
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    paths = {name: folder / f"{name}.pem" for name in ("ca", "cert", "key")}
    authority.cert_pem.write_to_path(str(paths["ca"]))
    certificate.cert_chain_pems[0].write_to_path(str(paths["cert"]))
    certificate.private_key_pem.write_to_path(str(paths["key"]))
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    tokens.chmod(0o600)
    files = ["--tls-cert", str(paths["cert"]), "--tls-key", str(paths["key"])]
    return [*files, "--token-file", str(tokens)], str(paths["ca"])


def play(
    name: str,
    server: Server,
    inputs: dict[str, NDArray[Any]],
    models: dict[str, dict[str, Any]],
    folder: Path,
    **more: str,
) -> dict[str, NDArray[Any]]:
    """Lets a client ask everything of every model; returns the outputs that it got."""
    environment, program, options = CLIENTS[name]
    ports = {"target": server.target, "gateway": server.gateway}
    round_of = {**ports, "models": models, "token": "", "ca": "", **options, **more}
    (folder / "round.json").write_text(json.dumps(round_of))
    np.savez(folder / "in.npz", **inputs)  # type: ignore[arg-type]
    script = ROOT / "tests" / "bare" / f"{program}.py"
    files = [str(folder / name) for name in ("round.json", "in.npz", "out.npz")]
    done = subprocess.run(
        [str(python_of(environment)), str(script), *files],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 0, done.stderr[-5000:]
    return dict(np.load(folder / "out.npz"))


def python_of(environment: str) -> Path:
    """Interpreter of the environment of a client."""
    return python_of_pins(ROOT / "tests" / "support" / "requirements" / f"{environment}.txt")


def assert_agrees(
    client: Client,
    found: dict[str, NDArray[Any]],
    inputs: dict[str, NDArray[Any]],
    models: dict[str, dict[str, Any]],
) -> None:
    """Checks that the outputs are those of the native calls, to the bit."""
    wanted: dict[str, Any] = {}
    for model, has in models.items():
        image = inputs[f"{model}.image"]
        native: dict[str, Any] = {"model": model}
        if has["conditional"]:
            native["labels"] = inputs[f"{model}.label"].tolist()
        posterior = client.encode(image, **native)
        wanted[f"{model}.encode.mean"] = posterior.mean
        if posterior.log_var is not None:
            wanted[f"{model}.encode.log_var"] = posterior.log_var
        decoded = client.decode(posterior.mean, dtype="uint8", **native)
        wanted[f"{model}.decode.image"] = decoded
        wanted[f"{model}.reconstruct.image"] = client.reconstruct(image, **native)
        if "sample" in has["operations"]:
            drawn = client.sample(5, seed=7, temperature=0.5, model=model)
            wanted[f"{model}.sample.image"] = drawn
            assert found.pop(f"{model}.sample.z").shape[0] == 5
        if "score" in has["operations"]:
            scored = client.score(image, draws=3, seed=7, **native)
            wanted[f"{model}.score.elbo"], wanted[f"{model}.score.nll"] = scored.elbo, scored.nll
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, name)


def test_the_stubs_of_the_server_and_those_of_a_client_clash_in_one_process():
    """Why the wheel must not have them, and why these tests start processes."""
    code = (
        f"import sys; sys.path.append({str(ROOT)!r})\n"
        "import tritonclient.grpc\n"
        "import importlib.util\n"
        "path = 'service/api/inference/inference_service_pb2.py'\n"
        f"spec = importlib.util.spec_from_file_location('pb', {str(ROOT)!r} + '/' + path)\n"
        "spec.loader.exec_module(importlib.util.module_from_spec(spec))\n"
    )
    python = python_of("tritonclient")
    done = subprocess.run([str(python), "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "duplicate symbol 'inference." in done.stderr
    assert "inference_service_pb2" in done.stderr
    assert sys.executable != str(python)
