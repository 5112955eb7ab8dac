"""Errors of the gateway: every row of the error table, and those of HTTP itself."""

import json
import socket
import threading
from contextlib import closing

import numpy as np
import pytest

from tests.support.conditional import write_conditional
from tests.support.http import Caller, npy, png
from tests.support.processes import Server
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

TOKEN = "0123456789abcdef"
MODEL = "/v1/models/one"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway-errors")
    write_tiny(folder / "models" / "one")
    write_conditional(folder / "models" / "styles")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    limits = ("--max-message-bytes", "20000", "--max-rows", "64", "--max-queue-rows", "64")
    options = ("--gateway-port", "0", "--http-port", "0", *limits)
    with Server(folder / "models", folder / "log", *options) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def gateway(server):
    return Caller(server.gateway)


@pytest.fixture(scope="module")
def guarded(folder):
    tokens = folder / "tokens"
    tokens.write_text(f"me:{TOKEN}\n")
    options = ("--gateway-port", "0", "--http-port", "0", "--token-file", str(tokens))
    with Server(folder / "models", folder / "guarded", *options) as running:
        yield running


def images(rows: int = 1) -> np.ndarray:
    return np.zeros((rows, 1, 4, 4), np.float32)


INVALID = {
    "count=0": ("count", "1 to 64"),
    "count=65": ("count", "1 to 64"),
    "count=x": ("count", "integer"),
    "count=1&count=2": ("count", "2 values"),
    "count=1&seed=-1": ("seed", "0 to 18446744073709551615"),
    "count=1&temperature=hot": ("temperature", "a number"),
    "count=1&format=gif": ("format", "one of"),
    "count=1&return_latents=maybe": ("return_latents", "true or false"),
    "count=1&colour=red": ("colour", "no such name"),
    "count=1&columns=0": ("columns", "1 to 4096"),
    "count=1&zoom=99": ("zoom", "1 to 32"),
    "count=1&tensors=rows": ("tensors", "lists or base64"),
    "count=1&output=mean": ("output", "images"),
    "count=1&quality=101": ("quality", "1 to 100"),
}


@pytest.mark.parametrize("query", INVALID)
def test_a_wrong_parameter_is_named(gateway, query):
    field, wanted = INVALID[query]
    problem = gateway.get(f"{MODEL}:sample?{query}").problem(400, field, wanted)
    assert problem["code"] == "INVALID_ARGUMENT"
    assert problem["errors"][0]["field"] == field
    assert problem["requestId"]


BODIES = {
    b"": ("latents", ""),
    b"{": ("body", "no JSON"),
    b"[]": ("body", "an object"),
    b"[" * 100_00 + b"]" * 100_00: ("body", ""),
    # Half of a surrogate pair, and one that is whole; RFC 8259 wants UTF-8.
    b'{"latents": [[1, 2, 3]], "format": "\\ud800"}': ("body", "surrogates not allowed"),
    b'{"\\uD83D": 1}': ("body", "surrogates not allowed"),
    b'{"\xed\xa0\x80": 1}': ("body", "no JSON"),
    '{"latents": 1}'.encode("utf-16"): ("body", "no JSON"),
    b'{"\\ud83d\\ude00": 1}': ("\U0001f600", "no such name"),
    b'{"latents": 1}': ("latents", ""),
    b'{"latents": [[1, 2], [3]]}': ("latents", "nested lists"),
    b'{"latents": [["a"]]}': ("latents", "nested lists"),
    b'{"latents": [[1, 2, 3]], "format": "tiff"}': ("format", "one of"),
    b'{"latents": [[1, 2, 3]], "colour": 1}': ("colour", "no such name"),
    b'{"latents": [[1, 2]]}': ("latents", "3"),
    b'{"latents": [[NaN, 2, 3]]}': ("latents", ""),
    b'{"latents": {"dtype": "DATA_TYPE_FLOAT32", "shape": [1, 3], "data": "AAAA"}}': (
        "latents",
        "",
    ),
    b'{"latents": [[1, 2, 3]], "model": {"name": "styles"}}': ("model", "path"),
}


@pytest.mark.parametrize("body", BODIES)
def test_a_wrong_body_is_named(gateway, body):
    field, wanted = BODIES[body]
    reply = gateway.post(f"{MODEL}:decode", body, content_type="application/json")
    reply.problem(400, field, wanted)


def test_integers_that_json_does_not_keep_are_refused(gateway):
    body = {"count": 1, "seed": 2**53 + 1}
    gateway.post(f"{MODEL}:sample", body).problem(400, "seed", "a string")
    body = {"count": 1, "seed": str(2**64 - 1), "offset": 0}
    reply = gateway.post(f"{MODEL}:sample", body)
    assert reply.json()["seed"] == str(2**64 - 1)


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (b"no npy", "numpy.save"),
        (npy(np.zeros((1, 3)))[:-1], "bytes after the head"),
        (npy(np.zeros((1, 3), np.int32)), "dtype"),
        (npy(np.zeros((1, 3), "U3")), "dtype"),
        (npy(np.zeros((0, 3), np.float32)), "shape"),
        (npy(np.float32(1)), ""),
        (npy(np.zeros((1, 4), np.float32)), "3"),
    ],
)
def test_a_wrong_npy_is_named(gateway, content, wanted):
    reply = gateway.post(f"{MODEL}:decode", content, content_type="application/x-npy")
    reply.problem(400, "latents", wanted)


def test_objects_of_python_are_never_read(gateway):
    evil = np.array([{"a": 1}], object)
    gateway.post_npy(f"{MODEL}:decode", evil).problem(400, "latents")


def test_a_wrong_picture_is_named_by_its_index(gateway):
    good = png(np.zeros((4, 4), np.uint8))
    boundary = "b0"
    body = b"".join(
        b'--b0\r\nContent-Disposition: form-data; name="i"; filename="%d"\r\n\r\n%s\r\n' % pair
        for pair in enumerate((good, b"no picture"))
    )
    media = f"multipart/form-data; boundary={boundary}"
    reply = gateway.post(f"{MODEL}:reconstruct", body + b"--b0--\r\n", content_type=media)
    assert reply.problem(400, "files[1]")["index"] == 1
    reply = gateway.post(f"{MODEL}:reconstruct", b"--b1", content_type=media)
    reply.problem(400, "body")
    reply = gateway.post(f"{MODEL}:reconstruct", body, content_type="multipart/form-data")
    reply.problem(400, "boundary")


def test_what_is_not_there_is_404(gateway):
    gateway.get("/v1/models/two:sample?count=1").problem(404, "'two'", "one, styles")
    gateway.get(f"{MODEL}/versions/7").problem(404, "7")
    gateway.get(f"{MODEL}/versions/{2**70}").problem(404, "version")
    gateway.get("/v2/anything/else").problem(404, "/openapi.json")
    gateway.get("/v1/models/").problem(404)
    gateway.get(f"{MODEL}:latent_map").problem(404, "map")


def test_what_a_model_cannot_do_is_409(gateway):
    gateway.get(f"{MODEL}:sample?count=1&label=0").problem(409)
    assert gateway.post_npy("/v1/models/styles:encode", images()).problem(409)["code"] == (
        "FAILED_PRECONDITION"
    )


def test_methods_and_media_types(gateway):
    reply = gateway.ask("DELETE", f"{MODEL}:sample")
    reply.problem(405, "DELETE", "GET")
    assert {"GET", "POST"} <= set(reply.headers["allow"].split(", "))
    gateway.get(f"{MODEL}:encode").problem(405)
    reply = gateway.ask("OPTIONS", f"{MODEL}:sample")
    assert reply.status == 204
    assert "GET" in reply.headers["allow"]
    reply = gateway.ask("HEAD", f"{MODEL}:sample?count=1&seed=1")
    assert (reply.status, reply.body) == (200, b"")
    assert int(reply.headers["content-length"]) > 0
    gateway.post(f"{MODEL}:sample", b"count=1").problem(415, "application/json")
    gateway.post(f"{MODEL}:sample", b"x", content_type="image/png").problem(415)
    empty = gateway.post(f"{MODEL}:encode?resize=true", b"", content_type="image/png")
    empty.problem(400, "images.encoded.files[0]", "an empty file")
    # Without a body, its media type means nothing where no picture is taken.
    assert gateway.post(f"{MODEL}:sample?count=1", b"", content_type="image/png").status == 200
    gateway.get(f"{MODEL}:sample?count=1", accept="text/html").problem(406, "image/png")


def test_what_is_too_large_is_413(gateway):
    gateway.post_npy(f"{MODEL}:encode", np.zeros((400, 1, 4, 4), np.float32)).problem(413, "20000")
    # Of a length that nobody knows before.
    chunks = (b"x" * 1000 for _ in range(40))
    headers = {"content-type": "application/x-npy"}
    gateway.ask("POST", f"{MODEL}:encode", chunks, headers).problem(413, "20000")


def test_a_full_server_is_429_with_the_time_to_wait(gateway):
    def ask(answers):
        query = {"count": 64, "seed": 1}
        answers.append(gateway.get(f"{MODEL}:sample", query, accept="application/x-npy"))

    for _ in range(20):
        answers = []
        threads = [threading.Thread(target=ask, args=(answers,)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        refused = [answer for answer in answers if answer.status != 200]
        for answer in refused:
            assert answer.problem(429)["code"] == "RESOURCE_EXHAUSTED"
            assert int(answer.headers["retry-after"]) >= 1
        if refused:
            return
    pytest.fail("the server was never full")


def test_deadlines(gateway):
    path = f"{MODEL}:sample?count=1"
    gateway.get(path, request_timeout="1e-9").problem(504, "deadline")
    gateway.get(path, request_timeout="soon").problem(400, "request-timeout", "0.5")
    gateway.get(path, request_timeout="-1").problem(400, "request-timeout")
    assert gateway.get(path, request_timeout="30").status == 200


def test_request_ids_come_back(gateway):
    reply = gateway.get("/v1/models", x_request_id="mine-1")
    assert reply.headers["x-request-id"] == "mine-1"
    assert gateway.get("/v1/models/none", x_request_id="mine-2").json()["requestId"] == "mine-2"


def test_tokens(guarded):
    stranger = Caller(guarded.gateway)
    for path in ("/v1/models", "/v1/server", "/v1/metrics", f"{MODEL}:sample?count=1"):
        reply = stranger.get(path)
        assert reply.problem(401, "no token")["code"] == "UNAUTHENTICATED"
        assert "Bearer" in reply.headers["www-authenticate"]
        assert stranger.get(path, authorization=f"Bearer {TOKEN}").status == 200
        stranger.get(path, authorization="Bearer fedcba9876543210").problem(401, "a wrong token")
        stranger.get(f"{path}{'&' if '?' in path else '?'}access_token={TOKEN}").problem(401)
    import base64

    basic = base64.b64encode(f"me:{TOKEN}".encode()).decode()
    assert stranger.get("/v1/models", authorization=f"Basic {basic}").status == 200
    stranger.get("/v1/models", authorization="Basic !").problem(401)
    # Before the body is received.
    big = npy(np.zeros((10, 1, 4, 4), np.float32))
    stranger.post(f"{MODEL}:encode", big, content_type="application/x-npy").problem(401)


def test_a_token_makes_replies_private(guarded):
    caller = Caller(guarded.gateway, {"authorization": f"Bearer {TOKEN}"})
    reply = caller.get(f"{MODEL}:sample?count=1&seed=1")
    assert reply.headers["cache-control"] == "private, no-cache"


def test_pages_of_other_origins_are_refused(gateway):
    host = "{}:{}".format(*gateway.address)
    assert gateway.get("/v1/models", origin=f"http://{host}").status == 200
    gateway.get("/v1/models", origin="https://example.org").problem(403, "example.org")
    gateway.get("/v1/models", origin="null").problem(403)
    gateway.ask("OPTIONS", "/v1/models", None, {"origin": "https://example.org"}).problem(403)


def test_names_that_are_made_to_resolve_to_loopback_are_refused(gateway):
    for host in ("evil.example", "evil.example:8000", "localhost.evil.example", "", "[::2]"):
        gateway.get("/v1/models", host=host).problem(421, "host")
    for host in ("localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:80"):
        assert gateway.get("/v1/models", host=host).status == 200


def test_origins_and_hosts_that_are_allowed(folder):
    options = (
        "--gateway-port", "0", "--cors-origin", "https://example.org,http://localhost:5173",
        "--allowed-host", "models.local",
    )  # fmt: skip
    with Server(folder / "models", folder / "cors", *options) as server:
        server.wait_until_serving()
        caller = Caller(server.gateway)
        reply = caller.get(f"{MODEL}:sample?count=1&seed=1", origin="https://example.org")
        assert reply.headers["access-control-allow-origin"] == "https://example.org"
        assert "X-Seed" in reply.headers["access-control-expose-headers"]
        preflight = caller.ask(
            "OPTIONS",
            f"{MODEL}:encode",
            None,
            {
                "origin": "http://localhost:5173",
                "access-control-request-method": "POST",
                "access-control-request-headers": "content-type,authorization,"
                "inference-header-content-length",
            },
        )
        assert preflight.status == 200
        assert "POST" in preflight.headers["access-control-allow-methods"]
        caller.get("/v1/models", origin="https://other.example").problem(403)
        assert caller.get("/v1/models", host="models.local:1").status == 200


def test_seeded_gets_are_pure_functions(gateway):
    path = f"{MODEL}:sample?count=2&seed=5"
    first = gateway.get(path)
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "public, no-cache"
    assert gateway.get(path).headers["etag"] == tag
    known = gateway.get(path, if_none_match=f'"other", W/{tag}')
    assert (known.status, known.body, known.headers["etag"]) == (304, b"", tag)
    for other in (f"{path}&offset=1", f"{path}&zoom=2", path.replace("seed=5", "seed=6")):
        assert gateway.get(other).headers["etag"] != tag
    assert gateway.get(path, accept="application/x-npy").headers["etag"] != tag
    named = gateway.get(f"{MODEL}/versions/1:sample?count=2&seed=5")
    assert named.headers["cache-control"] == "public, max-age=31536000, immutable"
    assert named.body == first.body
    free = gateway.get(f"{MODEL}:sample?count=2")
    assert free.headers["cache-control"] == "no-store"
    assert "etag" not in free.headers
    assert gateway.get(f"{MODEL}:traverse?steps=3").headers["etag"]


def test_a_tag_is_that_of_the_version_that_answers(tmp_path):
    for seed in (1, 2):
        write_tiny(tmp_path / "models" / "one", seed=seed)
    options = ("--gateway-port", "0", "--versions", "all", "--route", "one=1:50,2:50")
    with Server(tmp_path / "models", tmp_path / "log", *options) as server:
        gateway = Caller(server.wait_until_serving().gateway)
        found = {}
        for _ in range(20):
            reply = gateway.get(f"{MODEL}:traverse?steps=3")
            found.setdefault(reply.headers["etag"], set()).add(
                (reply.headers["x-model"], reply.body)
            )
    assert len(found) == 2
    assert all(len(replies) == 1 for replies in found.values())


def test_what_is_no_http_is_answered_and_the_server_stays(gateway):
    for content, status in (
        (b"GARBAGE\r\n\r\n", b"400"),
        (b"GET /v1/models HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 70_000, b"431"),
        (b"POST /v1/models HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", b"400"),
        (
            b"POST /v1/models/one:encode HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
            b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
            b"400",
        ),
    ):
        with closing(socket.create_connection(gateway.address, 10)) as sock:
            sock.sendall(content)
            reply = sock.makefile("rb").read()
            assert reply.startswith(b"HTTP/1.1 " + status), (content[:60], reply[:200])
            assert b"application/problem+json" in reply
    assert gateway.get("/v1/models").status == 200


def test_a_caller_who_leaves_cancels_its_call(gateway, server):
    before = server.metric("latentserve_requests_total", rpc="Score", code="CANCELLED")
    body = npy(np.zeros((64, 1, 4, 4), np.float32))
    with closing(gateway.connect()) as connection:
        connection.request(
            "POST", f"{MODEL}:score?draws=5000", body, {"content-type": "application/x-npy"}
        )
    wait_until(
        lambda: server.metric("latentserve_requests_total", rpc="Score", code="CANCELLED") > before
    )
    assert gateway.get("/v1/models").status == 200
    assert server.metric("latentserve_queue_bytes") == 0


def test_several_requests_of_one_connection_are_answered_in_order(gateway):
    request = b"GET /v1/models/one:sample?count=1&seed=%d HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(socket.create_connection(gateway.address, 10)) as sock:
        sock.sendall(b"".join(request % seed for seed in range(5)))
        found = b""
        while found.count(b"x-seed: ") < 5:
            found += sock.recv(65536)
    seeds = [line for line in found.split(b"\r\n") if line.startswith(b"x-seed: ")]
    assert seeds == [b"x-seed: %d" % seed for seed in range(5)]


def test_json_of_problems_is_what_rfc_9457_says(gateway):
    problem = json.loads(gateway.get("/v1/models/none").body)
    assert {"type", "title", "status", "detail"} <= problem.keys()
