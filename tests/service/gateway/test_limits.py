"""How much of anything a body may have: what is more is refused before it is parsed or held."""

import asyncio
import json
import socket
import threading
import time
from contextlib import closing

import numpy as np
import pytest

from latentserve.v1 import latent_service_pb2 as pb
from service.errors import InvalidArgument
from service.gateway import arrays, bodies
from service.gateway.inference import messages
from service.gateway.media import MediaType
from service.gateway.operations import OPERATIONS
from service.gateway.sources import _lines
from tests.support import ROOT
from tests.support.http import Caller, png
from tests.support.processes import Server
from tests.support.tiny import write_tiny

MODEL = "/v1/models/one"
ROWS = 64
BYTES = 4_000_000
JSON = MediaType("application/json", {})
FORM = MediaType("multipart/form-data", {"boundary": "b0"})
PNG = png(np.zeros((4, 4), np.uint8))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway-limits")
    write_tiny(folder / "models" / "one")
    limits = ("--max-message-bytes", str(BYTES), "--max-rows", str(ROWS))
    options = ("--gateway-port", "0", "--http-port", "0", *limits)
    with Server(folder / "models", folder / "log", *options) as running:
        yield running.wait_until_serving()
    assert "Traceback" not in (folder / "log").read_text()


@pytest.fixture(scope="module")
def gateway(server):
    return Caller(server.gateway)


def form(*parts: bytes) -> bytes:
    """A form of parts, each with its headers."""
    return b"".join(b"--b0\r\n%s\r\n" % part for part in parts) + b"--b0--\r\n"


def field(name: str, text: str) -> bytes:
    return f'Content-Disposition: form-data; name="{name}"\r\n\r\n{text}'.encode()


def file(content: bytes) -> bytes:
    return b'Content-Disposition: form-data; name="i"; filename="i"\r\n\r\n' + content


def read(operation: str, message, media: MediaType, body: bytes, max_rows: int = ROWS):
    (found,) = (one for one in OPERATIONS if one.name == operation)
    bodies.read(message, found, [], media, body, max_rows)
    return message


@pytest.mark.parametrize("operation", ["encode_stream", "decode_stream"])
@pytest.mark.parametrize("shape", [(1, 1, 10**6, 10**6), (1, BYTES), (1, 10**9, 10**9, 10**9)])
def test_rows_above_the_message_limit_are_refused_before_they_arrive(gateway, operation, shape):
    head = arrays.npy_head(np.dtype("<f4"), shape) + bytes(4096)
    request = (
        f"POST {MODEL}:{operation} HTTP/1.1\r\nHost: localhost\r\n"
        "content-type: application/x-npy\r\ntransfer-encoding: chunked\r\n\r\n"
    ).encode() + b"%x\r\n%s\r\n" % (len(head), head)
    # Without an end: the reply comes before it.
    with closing(socket.create_connection(gateway.address, 20)) as sock:
        sock.sendall(request)
        reply = b""
        while b'"requestId"' not in reply and (part := sock.recv(65536)):
            reply += part
    assert reply.startswith(b"HTTP/1.1 413"), reply
    assert f"wanted at most {BYTES}".encode() in reply


def test_rows_at_the_message_limit_are_read(gateway):
    rows = np.zeros((1, 1, 1000, 1000), np.float32)
    reply = gateway.post_npy(f"{MODEL}:encode_stream", rows)
    reply.problem(400, "images")  # as of a model with images of 4 x 4


@pytest.mark.parametrize("part", [field("label", "0"), file(PNG)])
def test_forms_have_few_parts(part):
    most = 2 * ROWS + 64
    with pytest.raises(InvalidArgument, match=f"body: got a form of {most + 1} parts, wanted at"):
        read("encode", pb.EncodeRequest(), FORM, form(*[part] * (most + 1)))


def test_headers_of_a_part_are_short():
    for length in (255 * 3, 1024):
        name = b'Content-Disposition: form-data; name="i"; filename="%s"' % (b"n" * length)
        body = form(name + b"\r\n\r\n" + PNG)
        if length < 1000:
            read("encode", pb.EncodeRequest(), FORM, body)
        else:
            with pytest.raises(InvalidArgument, match="header size"):
                read("encode", pb.EncodeRequest(), FORM, body)


def test_fields_of_forms_have_little_text():
    body = form(field("labels", "0," * 5000 + "0"), file(PNG))
    with pytest.raises(InvalidArgument, match="body: got 10001 characters in fields of a form"):
        read("encode", pb.EncodeRequest(), FORM, body)


def test_a_form_has_room_for_a_picture_and_a_class_of_each_row(gateway):
    each = [field("label", str(-(2**31)))] * ROWS
    for labels in (each, [field("labels", ", ".join(["-2147483648"] * ROWS))]):
        body = form(field("resize", "true"), *labels, *[file(PNG)] * ROWS)
        message = read("encode", pb.EncodeRequest(), FORM, body)
        assert len(message.images.encoded.files) == len(message.labels) == ROWS
    reply = gateway.post(
        f"{MODEL}:encode",
        form(*[file(PNG)] * ROWS),
        content_type="multipart/form-data; boundary=b0",
    )
    assert reply.status == 200


@pytest.mark.parametrize(
    ("operation", "message", "value", "field"),
    [
        ("encode", pb.EncodeRequest, {"labels": [0] * (ROWS + 1)}, "labels"),
        ("restyle", pb.ReconstructRequest, {"to": [0] * (ROWS + 1)}, "target_labels"),
        ("traverse", pb.TraverseRequest, {"axes": [0] * (ROWS + 1)}, "axes"),
        (
            "encode", pb.EncodeRequest, {"images": {"encoded": {"files": [""] * (ROWS + 1)}}},
            "images.encoded.files",
        ),
        (
            "decode", pb.DecodeRequest, {"latents": {"shape": ["1"] * (ROWS + 1)}},
            "latents.shape",
        ),
    ],
)  # fmt: skip
def test_repeated_fields_have_no_more_elements_than_there_are_rows(
    operation, message, value, field
):
    with pytest.raises(InvalidArgument, match=f"{field}: got 65 elements, wanted at most 64"):
        read(operation, message(), JSON, json.dumps(value).encode())


def test_json_has_few_values():
    most = 2 * 2**14 + 3 * ROWS + 64
    for text in ('{"images": [%s0]}', '{"model": {%s"b": 0}}'):
        body = (text % (('"a": 0,' if "model" in text else "0,") * most)).encode()
        with pytest.raises(InvalidArgument, match=f"body: got JSON of {most + 1} values, wanted"):
            read("encode", pb.EncodeRequest(), JSON, body)


def test_json_of_the_open_inference_protocol_has_few_members():
    one = {"name": "z", "shape": [1], "datatype": "FP32", "data": [0]}
    for value, where in (
        ({"inputs": [one] * 65}, "inputs"),
        ({"inputs": [one], "outputs": [{}] * 65}, "outputs"),
        ({"parameters": {str(index): 0 for index in range(65)}}, "parameters"),
        ({"inputs": [{**one, "shape": [1] * 65}]}, r"inputs\[0\].shape"),
    ):
        with pytest.raises(InvalidArgument, match=f"{where}: got 65 members, wanted at most 64"):
            messages.read(json.dumps(value).encode(), "", "one", "")
    body = b'{"inputs": [%s0]}' % (b"0," * 200_000)
    with pytest.raises(InvalidArgument, match="body: got JSON of 200001 values"):
        messages.read(body, "", "one", "")
    large = {**one, "datatype": "UINT8", "data": [255] * 2**16}
    raw = messages.read(json.dumps({"inputs": [large]}).encode(), "", "one", "").raw_input_contents
    assert len(raw[0]) == 2**16


def test_large_bodies_of_each_kind_are_still_read(gateway):
    rows = np.full((ROWS, 1, 4, 4), 0.5, np.float32)
    listed = {"images": rows.tolist(), "labels": []}
    wanted = gateway.post_npy(f"{MODEL}:encode", rows).npz()["mean"]
    # Spaces, since the model is small: above what is parsed on the event loop.
    padded = json.dumps(listed).encode() + b" " * 2**17
    answer = gateway.post(f"{MODEL}:encode", padded, content_type="application/json")
    assert np.array_equal(np.array(answer.json()["mean"], np.float32), wanted)
    z = np.zeros((ROWS, 3), np.float32)
    inputs = [{"name": "z", "shape": [ROWS, 3], "datatype": "FP32", "data": z.tolist()}]
    padded = json.dumps({"inputs": inputs}).encode() + b" " * 2**17
    assert gateway.post("/v2/models/one.decode/infer", padded).status == 200
    # A failure in the thread is the caller's as well.
    gateway.post(f"{MODEL}:encode", b"[" + b" " * 2**17, content_type="application/json").problem(
        400, "body"
    )
    listed = {"latents": np.zeros((1, 2**14)).tolist()}
    gateway.post(f"{MODEL}:decode", listed).problem(400, "latents")


def test_the_limits_are_those_of_the_page():
    page = (ROOT / "docs" / "http.md").read_text()
    others = bodies._MOST_OTHERS
    assert f"2 R + {others} parts, and {bodies._TEXT_BYTES} (R + {others}) characters" in page
    assert f"headers of {bodies._HEADER_BYTES // 1024} KiB" in page
    assert f"{2 * arrays.MAX_LISTED_VALUES:,} + 3 R + {others} values" in page


def test_nobody_waits_while_the_largest_bodies_are_refused(gateway):
    bodies_of = {
        "application/json": b'{"labels": [' + b"0," * 2_000_000 + b"0]}",
        "multipart/form-data; boundary=b0": form(*[field("a", "1")] * 80_000)[:BYTES],
    }
    longest, over = 0.0, threading.Event()

    def watch():
        nonlocal longest
        while not over.is_set():
            began = time.monotonic()
            assert gateway.get("/v2/health/live").status == 200
            longest = max(longest, time.monotonic() - began)

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        for media, body in bodies_of.items():
            for _ in range(2):
                gateway.post(f"{MODEL}:encode", body[:BYTES], content_type=media).problem(400)
    finally:
        over.set()
        watching.join()
    assert longest < 1.5  # reading one of them whole takes more than two seconds


def test_a_line_in_many_small_parts_costs_as_much_as_in_one():
    line, size = b"x" * 2**20, 16

    async def parts():
        for start in range(0, len(line), size):
            yield line[start : start + size]
        yield b"\n\nlast"

    async def read_lines():
        return [each async for each in _lines(parts())]

    begun = time.process_time()
    assert asyncio.run(read_lines()) == [line, b"last"]
    assert time.process_time() - begun < 2.0
