"""Texts of callers that Python's own conversions stumble over: none is a fault of the server."""

import socket
from contextlib import closing

import numpy as np
import pytest

from tests.support.http import Caller, npy
from tests.support.processes import Server
from tests.support.tiny import write_tiny

MODEL = "/v1/models/one"
# Above the 4,300 digits that int() reads.
DIGITS = "1" * 5000
HEADERS = (
    "content_type", "accept", "request_timeout", "traceparent", "x_request_id", "if_none_match",
    "origin", "access_control_request_method", "inference_header_content_length",
)  # fmt: skip
TEXTS = (
    DIGITS, "\xe9", ";", ",", "=", "multipart/form-data; boundary=\xe9", "1e999", "00-" + "g" * 32,
    "application/openmetrics-text; version=x",
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malformed")
    write_tiny(folder / "models" / "one")
    (folder / "tokens").write_text("me:0123456789abcdef\n")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    # Open, so that Host may be anything.
    options = ("--gateway-port", "0", "--http-port", "0", "--host", "0.0.0.0", "--gateway-open")
    with Server(folder / "models", folder / "log", *options) as running:
        yield running.wait_until_serving()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def gateway(server):
    return Caller(server.gateway)


@pytest.mark.parametrize(
    "path",
    [
        f"{MODEL}/versions/{{}}", f"{MODEL}/versions/{{}}:latent_map",
        f"{MODEL}/versions/{{}}:sample?count=1", "/v2/models/one/versions/{}",
        "/v2/models/one/versions/{}/ready",
    ],
)  # fmt: skip
def test_a_version_of_many_digits_is_not_there(gateway, path):
    for digits in (DIGITS, "0" * 5000 + "1"):
        assert gateway.get(path.format(digits)).status in (400, 404)
    for version in ("1", "0001"):
        assert gateway.get(f"{MODEL}/versions/{version}").status == 200


def test_a_version_of_many_digits_in_a_path_of_diffusers_is_not_there(gateway):
    path = f"/diffusers/one/versions/{DIGITS}/decode?shape=1,3&dtype=float32"
    gateway.post(path, bytes(12), content_type="tensor/binary").problem(404)


@pytest.mark.parametrize("name", ["chunk_rows", "chunkRows"])
@pytest.mark.parametrize("text", ["000000001" + DIGITS, DIGITS, "0", "1_0", "-1", "%D9%A1", ""])
def test_chunk_rows_is_a_small_number(gateway, name, text):
    path = f"{MODEL}:decode_stream?{name}={text}"
    reply = gateway.post_npy(path, np.zeros((2, 3), np.float32))
    reply.problem(400, "chunk_rows", "an integer, 1 to 1048576")
    path = f"{MODEL}:sample_stream?count=1&{name}={text}"
    assert gateway.get(path).status in (200, 400)


@pytest.mark.parametrize("credentials", ["\xe9", "=", "4pyT\xe9", "gICA", "YTpi\xff"])
def test_credentials_that_are_no_base64_are_wrong(guarded, credentials):
    for scheme in ("Basic", "Bearer", "Digest"):
        reply = guarded.get("/v1/models", authorization=f"{scheme} {credentials}")
        reply.problem(401)


@pytest.fixture(scope="module")
def guarded(folder):
    options = ("--gateway-port", "0", "--http-port", "0", "--token-file", str(folder / "tokens"))
    with Server(folder / "models", folder / "guarded", *options) as running:
        yield Caller(running.wait_until_serving().gateway)
    assert "Traceback" not in (folder / "guarded").read_text()


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (f'{{"count": 1, "temperature": {DIGITS[:400]}}}', "body"),
        ('{"count": 1, "format": 1e400}', "body"),
        ('{"count": 1, "format": 99}', "format"),
        ('{"count": 1e400}', "count"),
        (f'{{"count": {DIGITS}}}', "body"),
        (f'{{"count": 1, "seed": "{DIGITS}"}}', "seed"),
    ],
)
@pytest.mark.parametrize("accept", ["application/json", "application/x-npy", "image/png"])
def test_numbers_that_a_field_cannot_hold_are_named(gateway, body, field, accept):
    headers = {"content_type": "application/json", "accept": accept}
    gateway.post(f"{MODEL}:sample", body.encode(), **headers).problem(400, field)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("text", TEXTS)
def test_headers_of_any_text(gateway, header, text):
    body = npy(np.zeros((1, 3), np.float32))
    answers = [
        gateway.get("/v1/metrics", **{header: text}),
        gateway.get(f"{MODEL}:sample?count=1&seed=1", **{header: text}),
        gateway.post(f"{MODEL}:decode", body, **{header: text}),
        gateway.post("/v2/models/one.decode/infer", b"{}", **{header: text}),
        gateway.post("/v2/repository/index", b'{"ready": 1}', **{header: text}),
    ]
    assert all(answer.status < 500 for answer in answers), answers


@pytest.mark.parametrize("host", [b"[", b"[::1", b"]", b"a:b:c", b"\xe9", b"a:" + DIGITS.encode()])
def test_hosts_of_any_text(gateway, host):
    for path in (b"/nothing", b"/v1/models", b"/v1/models/one:encode"):
        with closing(socket.create_connection(gateway.address, 10)) as sock:
            head = b"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n\r\n" % (path, host)
            sock.sendall(head)
            reply = sock.makefile("rb").read()
        assert reply.startswith((b"HTTP/1.1 200", b"HTTP/1.1 4")), reply


def test_fields_of_the_open_inference_protocol_of_any_kind(gateway):
    for body in (
        b'{"inputs": [{"name": "z", "shape": [%s], "datatype": "FP32", "data": [1]}]}'
        % DIGITS[:400].encode(),
        b'{"inputs": [{"name": "z", "shape": [1], "datatype": "FP32", "data": [%s]}]}'
        % DIGITS[:400].encode(),
        b'{"parameters": {"seed": "%s"}}' % DIGITS.encode(),
        b'{"parameters": {"seed": 1e400}}',
        b'{"parameters": {"temperature": "%s"}}' % DIGITS.encode(),
    ):
        gateway.post("/v2/models/one.decode/infer", body).problem(400)
        gateway.post("/v2/models/one.sample/infer", body).problem(400)
        gateway.post("/v2/repository/index", body).problem(400)
