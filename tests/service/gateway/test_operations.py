"""The gateway's operations, against the same calls by gRPC."""

import contextlib
import http.client
import io
import json

import numpy as np
import pytest
from PIL import Image

from latentserve.client import Client
from tests.support.conditional import write_conditional
from tests.support.http import Caller, npy, png
from tests.support.processes import TRANSPORTS, Server
from tests.support.spatial import write_spatial

PICTURES = ("png", "jpeg", "webp")


@pytest.fixture(scope="module", params=TRANSPORTS)
def served(request, models, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    (folder / "mnist").symlink_to(models / "mnist")
    write_conditional(folder / "styles")
    write_spatial(folder / "pictures")
    options = ("--gateway-port", "0", "--http-port", "0", "--default-model", "mnist")
    with Server(folder, folder / "log", "--transport", request.param, *options) as server:
        yield server.wait_until_serving()


@pytest.fixture(scope="module")
def gateway(served):
    return Caller(served.gateway)


@pytest.fixture(scope="module")
def native(served):
    with Client(served.target) as client:
        yield client


@pytest.fixture(scope="module")
def digits(native):
    return native.sample(6, model="mnist", seed=3, dtype="uint8")


def test_descriptions_are_those_of_grpc(gateway, native):
    assert [one["name"] for one in gateway.get("/v1/models").json()["models"]] == [
        model.name for model in native.models()
    ]
    told = gateway.get("/v1/models/mnist").json()["model"]
    assert told["name"] == "mnist"
    assert told["latentDim"] == str(native.model("mnist").latent_dim)
    assert gateway.get("/v1/models/mnist/versions/1").json()["model"] == told
    assert gateway.get("/v1/server").json()["defaultModel"] == "mnist"


def test_encode_by_npy_is_an_npz_with_the_same_values(gateway, native, digits):
    wanted = native.encode(digits, model="mnist")
    found = gateway.post_npy("/v1/models/mnist:encode", digits).npz()
    np.testing.assert_array_equal(found["mean"], wanted.mean)
    np.testing.assert_array_equal(found["log_var"], wanted.log_var)
    alone = gateway.post_npy("/v1/models/mnist:encode", digits, {"output": "mean"}).npy()
    np.testing.assert_array_equal(alone, wanted.mean)
    drawn = gateway.post_npy("/v1/models/mnist:encode", digits, {"draw": "true", "seed": 5}).npz()
    np.testing.assert_array_equal(drawn["z"], native.encode(digits, model="mnist", seed=5).z)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_npy_of_every_float_is_taken(gateway, native, digits, dtype):
    pixels = (digits / 255).astype(dtype)
    found = gateway.post_npy("/v1/models/mnist:encode", pixels, {"output": "mean"}).npy()
    wanted = native.encode(pixels.astype(np.float32), model="mnist").mean
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_arrays_in_fortran_order_and_of_other_bytes_are_the_same_arrays(gateway, native, digits):
    latents = native.encode(digits, model="mnist").mean
    wanted = native.decode(latents, model="mnist", dtype="uint8")
    for array in (np.asfortranarray(latents), latents.astype(">f4")):
        found = gateway.post_npy("/v1/models/mnist:decode", array, {"format": "uint8"}).npy()
        np.testing.assert_array_equal(found, wanted)


def test_json_takes_and_gives_nested_lists(gateway, native, digits):
    latents = native.encode(digits[:2], model="mnist").mean
    reply = gateway.post("/v1/models/mnist:decode", {"latents": latents.tolist()})
    found = np.array(reply.json()["images"], np.float32)
    np.testing.assert_array_equal(found, native.decode(latents, model="mnist"))


def test_json_takes_and_gives_the_protos_mapping(gateway, native, digits):
    latents = native.encode(digits[:2], model="mnist").mean
    first = gateway.post_npy(
        "/v1/models/mnist:encode", digits[:2], {"tensors": "base64"}, accept="application/json"
    ).json()
    assert first["mean"]["dtype"] == "DATA_TYPE_FLOAT32"
    again = gateway.post(
        "/v1/models/mnist:decode", {"latents": first["mean"], "format": "IMAGE_FORMAT_UINT8"}
    ).json()
    wanted = native.decode(latents, model="mnist", dtype="uint8")
    np.testing.assert_array_equal(np.array(again["images"]), wanted)


def test_a_picture_is_one_line(gateway, native):
    reply = gateway.get("/v1/models/mnist:sample", {"count": 1, "seed": 7})
    wanted = native.sample(1, model="mnist", seed=7, dtype="uint8")
    np.testing.assert_array_equal(reply.picture(), wanted[0, 0])
    assert reply.headers["x-seed"] == "7"
    assert reply.headers["x-model"] == "mnist/1"


@pytest.mark.parametrize("kind", PICTURES)
def test_pictures_go_both_ways(gateway, kind):
    one = gateway.get("/v1/models/mnist:sample", {"count": 1, "seed": 7}, accept=f"image/{kind}")
    assert one.media == f"image/{kind}"
    grey = io.BytesIO()
    Image.fromarray(one.picture()).convert("L").save(grey, kind)
    # WebP has no grey, so that its files have to be converted.
    query = {"resize": "true"}
    path = "/v1/models/mnist:reconstruct"
    reply = gateway.post(path, grey.getvalue(), query, content_type=f"image/{kind}")
    assert reply.media == f"image/{kind}"
    assert reply.picture().shape[:2] == (28, 28)


def test_a_sheet_has_the_images_row_by_row(gateway, native):
    query = {"count": 6, "seed": 2, "columns": 3, "zoom": 2}
    sheet = gateway.get("/v1/models/mnist:sample", query).picture()
    wanted = native.sample(6, model="mnist", seed=2, dtype="uint8")
    assert sheet.shape == (2 * (2 * 30 + 2), 2 * (3 * 30 + 2))
    plain = sheet[::2, ::2]
    for index, image in enumerate(wanted):
        top, left = 2 + 30 * (index // 3), 2 + 30 * (index % 3)
        np.testing.assert_array_equal(plain[top : top + 28, left : left + 28], image[0])


def test_a_form_has_several_pictures_and_fields(gateway, native, digits):
    body, media = form([png(digits[0, 0]), png(digits[1, 0])], {"steps": "5", "method": "linear"})
    reply = gateway.post(
        "/v1/models/mnist:interpolate", body, content_type=media, accept="application/x-npy"
    )
    wanted = native.interpolate(digits[0], digits[1], 5, model="mnist", latents=False).images
    np.testing.assert_array_equal(reply.npy(), wanted)


def test_pictures_of_another_size_are_resized_where_that_is_asked_for(gateway, digits):
    large = png(np.repeat(np.repeat(digits[0, 0], 3, 0), 3, 1))
    path = "/v1/models/mnist:reconstruct"
    gateway.post(path, large, content_type="image/png").problem(400, "28x28", "resize")
    reply = gateway.post(path, large, {"resize": "true"}, content_type="image/png")
    assert reply.picture().shape == (28, 28)


def test_score_tells_what_the_client_tells(gateway, native, digits):
    wanted = native.score(digits, model="mnist", draws=4, seed=9)
    query = {"draws": 4, "seed": 9}
    found = gateway.post_npy("/v1/models/mnist:score", digits, query).npz()
    np.testing.assert_array_equal(found["elbo"], wanted.elbo)
    np.testing.assert_array_equal(found["nll"], wanted.nll)
    told = gateway.post("/v1/models/mnist:score", png(digits[0, 0]), content_type="image/png")
    assert told.json()["elbo"] == pytest.approx([wanted.elbo[0]], rel=1e-6)


def test_traverse_has_the_grid_of_the_client(gateway, native):
    query = {"axes": "1,0", "steps": 4, "range": 2}
    reply = gateway.get("/v1/models/mnist:traverse", query, accept="application/x-npy")
    wanted = native.traverse((1, 0), steps=4, range=2.0, model="mnist").images
    np.testing.assert_array_equal(reply.npy(), wanted.reshape(reply.npy().shape))


def test_conditional_models_take_labels_and_restyle(gateway, native):
    images = np.random.default_rng(0).random((2, 1, 4, 4), np.float32)
    wanted = native.restyle(images, [1, 3], [0, 1, 2], model="styles")
    query = {"labels": "1,3", "to": "0,1,2", "format": "float32"}
    found = gateway.post_npy("/v1/models/styles:restyle", images, query).npy()
    np.testing.assert_array_equal(found, wanted.reshape(found.shape))
    by_json = gateway.post(
        "/v1/models/styles:restyle", {"images": images.tolist(), "labels": [1, 3], "to": [0, 1, 2]}
    )
    np.testing.assert_array_equal(np.array(by_json.json()["images"], np.float32), found)
    assert gateway.post_npy("/v1/models/styles:encode", images).problem(409)
    gateway.post_npy("/v1/models/styles:restyle", images, {"labels": 1}).problem(400, "to", "none")
    for to, wanted in (("2,99", "to[1]: got 99"), ("x", "to: got x")):
        query = {"labels": 1, "to": to}
        gateway.post_npy("/v1/models/styles:restyle", images, query).problem(400, wanted)
    gateway.post_npy("/v1/models/mnist:decode", np.zeros((1, 32)), {"label": 1}).problem(409)


def test_spatial_models_take_pictures_of_any_size(gateway, native):
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    query = {"output": "mean"}
    found = gateway.post(
        "/v1/models/pictures:encode", png(pixels), query, content_type="image/png",
        accept="application/x-npy",
    ).npy()  # fmt: skip
    wanted = native.encode(pixels.transpose(2, 0, 1)[None], model="pictures").mean
    np.testing.assert_array_equal(found, wanted)
    reply = gateway.post_npy("/v1/models/pictures:decode", found, accept="image/png")
    assert reply.picture().shape == pixels.shape


def test_streams_give_the_rows_of_the_sequence(gateway, native):
    query = {"count": 700, "seed": 4, "chunk_rows": 300, "format": "uint8"}
    path = "/v1/models/mnist:sample_stream"
    rows = gateway.get(path, query, accept="application/x-npy").npy()
    np.testing.assert_array_equal(rows, native.sample(700, model="mnist", seed=4, dtype="uint8"))
    lines = gateway.get(path, {"count": 5, "seed": 4, "chunk_rows": 2})
    assert lines.media == "application/x-ndjson"
    replies = [json.loads(line) for line in lines.body.splitlines()]
    assert [len(reply["images"]) for reply in replies] == [2, 2, 1]
    assert [reply.get("offset", "0") for reply in replies] == ["0", "2", "4"]


def test_streams_take_more_than_a_message_may_have(gateway, native):
    images = native.sample(1000, model="mnist", seed=1, dtype="uint8")
    query = {"chunk_rows": 128}
    mean = gateway.post_npy(
        "/v1/models/mnist:encode_stream", images, query, accept="application/x-npy"
    ).npy()
    np.testing.assert_array_equal(mean, native.encode(images, model="mnist").mean)
    again = gateway.post_npy(
        "/v1/models/mnist:decode_stream", mean, {"format": "uint8"}, accept="application/x-npy"
    ).npy()
    np.testing.assert_array_equal(again, native.decode(mean, model="mnist", dtype="uint8"))


def test_draws_for_the_rows_of_a_stream_are_those_of_one_call(gateway, native):
    images = native.sample(10, model="mnist", seed=1, dtype="uint8")
    path = "/v1/models/mnist:encode_stream"
    query = {"chunk_rows": 4, "draw": "true", "seed": 7, "offset": 2, "output": "z"}
    z = gateway.post_npy(path, images, query, accept="application/x-npy").npy()
    wanted = native.encode(images, model="mnist", draw=True, seed=7, offset=2).z
    np.testing.assert_array_equal(z, wanted)
    query["offset"] = 2**64 - 9
    gateway.post_npy(path, images, query, accept="application/x-npy").problem(400, "2^64 - 10")


def test_lines_of_requests_are_answered_in_order(gateway, native):
    latents = native.encode(native.sample(3, model="mnist", seed=1), model="mnist").mean
    body = b"\n".join(json.dumps({"latents": [row.tolist()]}).encode() for row in latents)
    reply = gateway.post(
        "/v1/models/mnist:decode_stream", body, content_type="application/x-ndjson"
    )
    found = [json.loads(line)["images"] for line in reply.body.splitlines()]
    np.testing.assert_array_equal(
        np.array(found, np.float32)[:, 0], native.decode(latents, model="mnist")
    )


def test_a_failure_within_a_stream_is_its_last_line(gateway):
    body = b'{"latents": [%s]}\n{"latents": [[1]]}\n' % json.dumps([0.0] * 32).encode()
    reply = gateway.post(
        "/v1/models/mnist:decode_stream", body, content_type="application/x-ndjson"
    )
    first, last = map(json.loads, reply.body.splitlines())
    assert "images" in first
    assert last["error"]["code"] == "INVALID_ARGUMENT"
    assert "latents" in last["error"]["detail"]


def test_an_npy_that_ends_too_early_leaves_a_reply_without_its_end(gateway):
    whole = npy(np.zeros((600, 32), np.float32))
    headers = {"content-type": "application/x-npy", "accept": "application/x-npy"}
    with contextlib.closing(gateway.connect()) as connection:
        connection.request("POST", "/v1/models/mnist:decode_stream", whole[:-4], headers)
        with connection.getresponse() as reply:
            assert reply.status == 200
            with pytest.raises((ConnectionError, http.client.IncompleteRead)):
                reply.read()


def test_metrics_tell_the_transport(gateway, served):
    before = served.metric("latentserve_requests_total", rpc="Sample", transport="http")
    gateway.get("/v1/models/mnist:sample", {"count": 1})
    assert served.metric("latentserve_requests_total", rpc="Sample", transport="http") == before + 1
    assert "latentserve_requests_total" in gateway.get("/v1/metrics").body.decode()


def form(files: list[bytes], fields: dict[str, str]) -> tuple[bytes, str]:
    """multipart/form-data of files and text fields, and its media type."""
    boundary = b"a5f1c0de"
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"\r\n\r\n%s\r\n'
        % (boundary, name.encode(), value.encode())
        for name, value in fields.items()
    ]
    parts += [
        b'--%s\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n%s\r\n" % (boundary, content)
        for content in files
    ]
    return b"".join(parts) + b"--%s--\r\n" % boundary, "multipart/form-data; boundary=a5f1c0de"
