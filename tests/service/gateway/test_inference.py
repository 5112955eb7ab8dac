"""The Open Inference Protocol by HTTP, against the native calls."""

import json

import numpy as np
import pytest

from latentserve.client import Client
from tests.support.conditional import write_conditional
from tests.support.http import Caller
from tests.support.processes import Server
from tests.support.tiny import write_tiny

TOKEN = "0123456789abcdef"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("inference")
    write_tiny(folder / "models" / "one")
    write_conditional(folder / "models" / "styles")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    options = ("--gateway-port", "0", "--http-port", "0")
    with Server(folder / "models", folder / "log", *options) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def gateway(server):
    return Caller(server.gateway)


@pytest.fixture(scope="module")
def native(server):
    with Client(server.target) as client:
        yield client


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(0).random((3, 1, 4, 4), np.float32)


def input_of(name, array, datatype="FP32", **more):
    return {"name": name, "shape": list(array.shape), "datatype": datatype, **more}


def test_health_metadata_and_index(gateway):
    assert gateway.get("/v2/health/live").json() == {"live": True}
    assert gateway.get("/v2/health/ready").json() == {"ready": True}
    server = gateway.get("/v2").json()
    assert server["name"] == "latentserve"
    assert "binary_tensor_data" in server["extensions"]
    assert gateway.get("/v2/models/one.decode/ready").json() == {
        "name": "one.decode",
        "ready": True,
    }
    told = gateway.get("/v2/models/one.encode/versions/1").json()
    assert told["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 1, 4, 4]}]
    assert [output["name"] for output in told["outputs"]] == ["mean", "log_var", "z"]
    config = gateway.get("/v2/models/one.encode/config").json()
    assert config["max_batch_size"] > 1
    assert config["input"][0]["dims"] == [1, 4, 4]
    names = {entry["name"] for entry in gateway.post("/v2/repository/index", {}).json()}
    assert {"one.encode", "one.decode", "styles.sample"} <= names


def test_infer_by_json(gateway, native, images):
    body = {
        "id": "42",
        "inputs": [input_of("image", images, data=images.tolist())],
        "outputs": [{"name": "log_var"}, {"name": "mean"}],
    }
    told = gateway.post("/v2/models/one.encode/infer", body).json()
    wanted = native.encode(images, model="one")
    assert (told["id"], told["model_name"], told["model_version"]) == ("42", "one.encode", "1")
    assert [output["name"] for output in told["outputs"]] == ["log_var", "mean"]
    for output, array in zip(told["outputs"], (wanted.log_var, wanted.mean), strict=True):
        found = np.array(output["data"], np.float32).reshape(output["shape"])
        np.testing.assert_array_equal(found, array)


@pytest.mark.parametrize("every", [True, False])
def test_infer_by_bytes(gateway, native, images, every):
    raw = images.tobytes()
    body = {"inputs": [input_of("image", images, parameters={"binary_data_size": len(raw)})]}
    if every:
        body["parameters"] = {"binary_data_output": True}
    else:
        body["outputs"] = [{"name": "mean", "parameters": {"binary_data": True}}]
    head = json.dumps(body).encode()
    reply = gateway.post(
        "/v2/models/one.encode/infer",
        head + raw,
        inference_header_content_length=str(len(head)),
        content_type="application/octet-stream",
    )
    length = int(reply.headers["inference-header-content-length"])
    told = json.loads(reply.body[:length])
    first = told["outputs"][0]
    size = first["parameters"]["binary_data_size"]
    found = np.frombuffer(reply.body[length : length + size], np.float32).reshape(first["shape"])
    np.testing.assert_array_equal(found, native.encode(images, model="one").mean)


def test_parameters_and_labels(gateway, native, images):
    body = {
        "parameters": {"seed": "7", "format": "uint8"},
        "inputs": [{"name": "count", "shape": [1], "datatype": "INT64", "data": [4]}],
        "outputs": [{"name": "image"}],
    }
    told = gateway.post("/v2/models/one.sample/infer", body).json()
    output = told["outputs"][0]
    assert output["datatype"] == "UINT8"
    wanted = native.sample(4, seed=7, model="one", dtype="uint8")
    np.testing.assert_array_equal(np.array(output["data"]).reshape(output["shape"]), wanted)
    body = {
        "inputs": [
            input_of("image", images, data=images.ravel().tolist()),
            {"name": "label", "shape": [3], "datatype": "INT64", "data": [0, 1, 2]},
        ],
        "outputs": [{"name": "mean"}],
    }
    told = gateway.post("/v2/models/styles.encode/infer", body).json()
    found = np.array(told["outputs"][0]["data"], np.float32).reshape(3, -1)
    wanted = native.encode(images, labels=[0, 1, 2], model="styles").mean
    np.testing.assert_array_equal(found, wanted)


IMAGE = {"name": "image", "shape": [1, 1, 4, 4], "datatype": "FP32"}
WRONG = {
    "no json": (b"{", "body"),
    "no object": (b"[]", "body"),
    "unknown": ({"inputs": [], "more": 1}, "body.more"),
    "no elements": ({"inputs": [IMAGE]}, "inputs[0].data"),
    "ragged": ({"inputs": [{**IMAGE, "data": [[1], [1, 2]]}]}, "inputs[0].data"),
    "text": ({"inputs": [{**IMAGE, "data": ["a"]}]}, "inputs[0].data"),
    "too few": ({"inputs": [{**IMAGE, "data": [1.0]}]}, "inputs.image"),
    "datatype": ({"inputs": [{**IMAGE, "datatype": "BYTES", "data": [1]}]}, "inputs[0].datatype"),
    "half": ({"inputs": [{**IMAGE, "datatype": "FP16", "data": [1]}]}, "inputs[0].datatype"),
    "no such input": ({"inputs": [{**IMAGE, "name": "x", "data": [0.0] * 16}]}, "'x'"),
    "no such output": (
        {"inputs": [{**IMAGE, "data": [0.0] * 16}], "outputs": [{"name": "x"}]},
        "outputs",
    ),
    "no such parameter": (
        {"inputs": [{**IMAGE, "data": [0.0] * 16}], "parameters": {"x": 1}},
        "parameters.x",
    ),
    "no bytes": ({"inputs": [{**IMAGE, "parameters": {"binary_data_size": 64}}]}, "64"),
    "uint8": ({"inputs": [{**IMAGE, "datatype": "UINT8", "data": [256] * 16}]}, "inputs[0].data"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_named(gateway, name):
    body, named = WRONG[name]
    problem = gateway.post("/v2/models/one.encode/infer", body).problem(400, named)
    # Where Triton's clients look for it.
    assert problem["error"] == problem["detail"]


def test_what_is_not_there(gateway):
    for path in ("/v2/models/one", "/v2/models/two.encode", "/v2/models/one.encode/versions/9"):
        gateway.get(path).problem(404)
    gateway.post("/v2/models/two.encode/infer", {"inputs": []}).problem(404)
    gateway.get("/v2/models/one.encode/versions/x").problem(404, "version")


def test_probes_need_no_token_and_all_else_does(folder):
    tokens = folder / "tokens"
    tokens.write_text(f"{TOKEN}\n")
    options = ("--gateway-port", "0", "--token-file", str(tokens))
    with Server(folder / "models", folder / "guarded", *options) as server:
        caller = Caller(server.gateway)
        assert caller.get("/v2/health/live").status == 200
        assert caller.get("/v2/health/ready").status == 200
        for path in ("/v2", "/v2/models/one.encode", "/v2/models/one.encode/ready"):
            caller.get(path).problem(401)
            assert caller.get(path, authorization=f"Bearer {TOKEN}").status == 200
        caller.post("/v2/models/one.encode/infer", {"inputs": []}).problem(401)
