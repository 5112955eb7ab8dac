"""Each row of the error table, through each door of a server: the same error, whoever asks."""

import re
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2
from tests.support import ROOT, stubs
from tests.support.conditional import write_conditional
from tests.support.doors import (
    HTTP_STATUSES,
    Diffusers,
    Failure,
    Grpc,
    GrpcInference,
    Http,
    HttpInference,
)
from tests.support.http2_client import RawClient
from tests.support.processes import TRANSPORTS, Server
from tests.support.spatial import Spatial, write_spatial
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

TOKEN = "0123456789abcdef"
CALLER = {"authorization": f"Bearer {TOKEN}", "x-request-id": "mine"}
PORTS = ("--gateway-port", "0", "--http-port", "0")
LIMITS = (
    "--max-rows", "64", "--max-queue-rows", "64", "--max-message-bytes", "50000",
    "--max-score-draws", "1000000",
)  # fmt: skip
REASONS = {"NOT_FOUND": "MODEL_NOT_FOUND", "FAILED_PRECONDITION": "NOT_FOR_THIS_MODEL"}


def tensor(*shape: int, value: float = 0.0, data: bytes | None = None) -> tensor_pb2.Tensor:
    content = np.full(shape, value, np.float32).tobytes() if data is None else data
    return tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_FLOAT32, shape=shape, data=content)


def images(*shape: int, value: float = 0.0) -> tensor_pb2.Images:
    return tensor_pb2.Images(tensor=tensor(*shape, value=value))


def one(kind: str, model: str = "one", version: int = 0, **fields: object) -> tuple[str, object]:
    """A method, and a request for it."""
    selector = pb.ModelSelector(name=model, version=version)
    return kind, getattr(pb, f"{kind}Request")(model=selector, **fields)


UINT8 = tensor_pb2.Tensor(dtype=tensor_pb2.DATA_TYPE_UINT8, shape=[1, 3], data=b"abc")
RGB = (1, 3, 16, 16)
#: Each situation of the table by its status: a request, and what its error says.
SITUATIONS = {
    "INVALID_ARGUMENT": {
        "shape": (one("Decode", latents=tensor(2, 4)), "latents.shape: got [2, 4], wanted [N, 3]"),
        "shape of images": (one("Encode", images=images(2, 5, 5)), "images.tensor.shape: got [2,"),
        "dtype": (one("Decode", latents=UINT8), "latents.dtype: got UINT8, wanted FLOAT32"),
        "range": (one("Encode", images=images(1, 4, 4, value=2)), "images.tensor.data: got values"),
        "NaN": (one("Decode", latents=tensor(1, 3, value=np.nan)), "latents.data: got NaN"),
        "byte count": (
            one("Decode", latents=tensor(1, 3, data=b"1234")),
            "latents.data: got 4 bytes, wanted 12 for float32 [1, 3]",
        ),
        "rows": (one("Decode", latents=tensor(65, 3)), "latents.shape: got 65 rows, wanted 1 to"),
        "no rows": (one("Decode", latents=tensor(0, 3)), "latents.shape: got 0 rows, wanted 1 to"),
        "count": (one("Sample", count=65), "count: got 65, wanted 1 to 64"),
        "no count": (one("Sample"), "count: got 0, wanted 1 to 64"),
        "temperature": (one("Sample", count=1, temperature=-1), "temperature: got -1, wanted 0 to"),
        "truncation": (one("Sample", count=1, truncation=-1), "truncation: got -1, wanted a"),
        "offset": (
            one("Sample", count=2, seed=1, offset=2**64 - 1),
            "offset: got 18446744073709551615, wanted at most 2^64 - 2",
        ),
        "draws": (one("Score", images=images(1, 4, 4), draws=2**30), "draws: got 1073741824"),
        "damaged picture": (
            one("Reconstruct", images=stubs.files(b"no picture")),
            "images.encoded.files[0]: got a file that is no picture, or damaged",
        ),
        "label": (one("Sample", "styles", count=1, label=9), "label: got 9, wanted -1 to 3"),
        "labels": (
            one("Decode", "styles", latents=tensor(1, 3), labels=[9]),
            "labels[0]: got 9, wanted 0 to 3",
        ),
        "number of labels": (
            one("Decode", "styles", latents=tensor(3, 3), labels=[1, 2]),
            "labels: got 2 labels, wanted one for each of 3 rows",
        ),
        "no images": (one("Encode"), "images: got no images, wanted images.tensor or"),
        "no latents": (one("Decode"), "latents.shape: got [], wanted [N, 3]"),
        "steps": (one("Interpolate", latents=tensor(2, 3), steps=1), "steps: got 1, wanted 2 to"),
        "axes": (one("Traverse", axes=[9], steps=3), "axes: got [9], wanted one or two different"),
    },
    "NOT_FOUND": {
        "model": (one("Decode", "none", latents=tensor(1, 3)), "model.name: got 'none', wanted"),
        "version": (one("Decode", version=7, latents=tensor(1, 3)), "model.version: got 7, wanted"),
        "description": (one("GetModel", "none"), "model.name: got 'none', wanted one of decoder,"),
        "latent map": (one("GetLatentMap"), "one: version 1 has no latent map"),
    },
    "FAILED_PRECONDITION": {
        "labels of no classes": (
            one("Decode", latents=tensor(1, 3), labels=[1]),
            "labels: got 1 label, but one is not conditional on the class",
        ),
        "label of no classes": (one("Sample", count=1, label=1), "label: got 1, but the prior of"),
        "no labels": (one("Encode", "styles", images=images(1, 4, 4)), "labels: got none, but"),
        "no target labels": (
            one("Interpolate", "styles", images=images(2, 4, 4), labels=[0, 1], steps=3),
            "target_labels: got none, but labels 0 and 1",
        ),
        "no prior": (one("Sample", "plain", count=1), "plain is a plain autoencoder; it has no"),
        "no posterior": (
            one("Encode", "plain", images=images(*RGB), draw=True),
            "draw: plain is a plain autoencoder; it has no posterior to draw from",
        ),
        "no likelihood": (one("Score", "plain", images=images(*RGB)), "plain is a plain auto"),
        "no encoder": (one("Encode", "decoder", images=images(*RGB)), "decoder is a decoder alone"),
        "no scaling": (one("Encode", images=images(1, 4, 4), scaled=True), "scaled: the bundle of"),
    },
    "RESOURCE_EXHAUSTED": {
        "message": (one("Decode", latents=tensor(6000, 3)), "message: larger than max ("),
    },
    "INTERNAL": {
        "bug": (
            one("Decode", "fails", latents=tensor(1, 3, value=50)),
            "internal error, request id mine",
        ),
    },
}  # fmt: skip
CASES = {
    f"{code}, {name}": (code, *request, text)
    for code, situations in SITUATIONS.items()
    for name, (request, text) in situations.items()
}
_NO_SUCH = "got '{}', wanted one of {}"
_OF_DECODER = "decoder.decode, decoder.sample"
_OF_PLAIN = "plain.decode, plain.encode, plain.reconstruct"
#: Where a door has words of its own, since the other ones' make no sense there: its models are
#: NAME.OPERATION, its datatypes and ranges its own, or the whole parameter is absent.
OWN_WORDS = {
    ("dtype", "inference"): "latents.dtype: got 'UINT8', wanted one of FP32, FP16, BF16",
    ("dtype", "diffusers"): "latents.dtype: got uint8, wanted one of float16, bfloat16, float32",
    ("range", "diffusers"): "images.tensor.data: got values from 2 to 2, wanted values from -1 to",
    ("no rows", "diffusers"): "latents.shape: got 0,3, wanted the size of each axis",
    ("no images", "inference"): "images.tensor: got no such input, wanted one",
    ("no latents", "inference"): "latents: got no such input, wanted one",
    ("model", "inference"): "model.name: got 'none.decode', wanted one of decoder.decode, fails",
    ("version", "inference"): "model.version: got '7', wanted one of 1 of one, or none",
    ("no prior", "inference"): "model.name: " + _NO_SUCH.format("plain.sample", _OF_PLAIN),
    ("no likelihood", "inference"): "model.name: " + _NO_SUCH.format("plain.score", _OF_PLAIN),
    ("no encoder", "inference"): "model.name: " + _NO_SUCH.format("decoder.encode", _OF_DECODER),
}


class Doors:
    """A server, the transport of its gRPC port, and its doors by name."""

    def __init__(self, server: Server, transport: str):
        self.server = server
        self.transport = transport
        self.by_name = {
            "gRPC": Grpc(server.target),
            "gRPC, Open Inference Protocol": GrpcInference(server.target),
            "/v1": Http(server.gateway),
            "/v2": HttpInference(server.gateway),
            "/diffusers": Diffusers(server.gateway),
        }

    def fail(self, method, request, headers=CALLER) -> dict[str, Failure]:
        """How a call fails at each door that can express it."""
        found = {name: door.fail(method, request, headers) for name, door in self.by_name.items()}
        return {name: failure for name, failure in found.items() if failure is not None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doors")
    models = folder / "models"
    write_tiny(models / "one")
    write_tiny(models / "fails", fails_above=10.0)
    write_conditional(models / "styles")
    write_spatial(models / "plain", Spatial(posterior="delta", prior="none", scaling=None))
    write_spatial(models / "decoder", Spatial(posterior="none"))
    write_tiny(folder / "refused" / "one", golden_error=1.0)
    (folder / "tokens").write_text(f"{TOKEN}\n")
    return folder


@pytest.fixture(scope="module", params=TRANSPORTS)
def doors(request, folder) -> Iterator[Doors]:
    options = (*PORTS, *LIMITS, "--token-file", str(folder / "tokens"))
    log = folder / f"log-{request.param}"
    with Server(folder / "models", log, *options, "--transport", request.param) as server:
        yield Doors(server.wait_until_serving(), request.param)


@pytest.mark.parametrize("case", CASES)
def test_what_is_wrong_is_told_alike(doors, case):
    code, method, request, text = CASES[case]
    found = doors.fail(method, request)
    for name, failure in found.items():
        speaks = doors.by_name[name].speaks
        own = OWN_WORDS.get((case.partition(", ")[2], speaks), "")
        wanted_code = "NOT_FOUND" if own.startswith("model.") else code
        assert failure.code == wanted_code, (name, failure)
        if code == "RESOURCE_EXHAUSTED" and name.startswith("gRPC") and doors.transport == "grpcio":
            # The library of gRPC refuses it by itself.
            assert failure.message.startswith("SERVER: Received message larger than max (")
            continue
        assert failure.message.startswith(own or text), (name, failure)
        if code == "INVALID_ARGUMENT":
            ((field, description),) = failure.fields
            assert failure.message == f"{field}: {description}"
        if not own and code != "RESOURCE_EXHAUSTED":  # the numbers of bytes differ
            assert failure == found["gRPC"], name
        reason = "NO_LATENT_MAP" if "latent map" in case else REASONS.get(wanted_code, wanted_code)
        too_large = code == "RESOURCE_EXHAUSTED"
        assert failure.reason == ("MESSAGE_TOO_LARGE" if too_large else reason)
    inferred = {found[name] for name in found if doors.by_name[name].speaks == "inference"}
    assert len(inferred) <= 1 or code == "RESOURCE_EXHAUSTED", inferred


@pytest.mark.parametrize(
    ("headers", "text"),
    [({}, "got no token"), ({"authorization": "Bearer wrong"}, "got a wrong token")],
)
def test_tokens(doors, headers, text):
    found = doors.fail(*one("Decode", latents=tensor(1, 3)), headers)
    wanted = Failure(
        "UNAUTHENTICATED", f"authorization: {text}, wanted 'Bearer TOKEN'", "UNAUTHENTICATED"
    )
    assert found == dict.fromkeys(doors.by_name, wanted)


#: A call that takes much longer than any test.
_LONG = one("Score", images=images(1, 4, 4), draws=1_000_000)
_FULL = one("Score", images=images(64, 4, 4), draws=1_000_000)


def test_a_full_server_and_a_caller_who_leaves(doors):
    server = doors.server

    def rows() -> float:
        return server.metric("latentserve_queue_rows")

    for name, door in doors.by_name.items():
        if door.speaks == "diffusers":  # has no call that takes long
            continue
        labels = {"rpc": door.rpc or "Score", "transport": door.transport, "code": "CANCELLED"}
        before = server.metric("latentserve_requests_total", **labels)
        with door.begun(*_FULL, CALLER):
            wait_until(lambda: rows() == 64)
            if name == "gRPC":
                found = doors.fail(*one("Decode", latents=tensor(1, 3)))
        wait_until(
            lambda labels=labels, before=before: (
                server.metric("latentserve_requests_total", **labels) == before + 1
            )
        )
        wait_until(lambda: rows() == 0)
    assert set(found) == set(doors.by_name)
    assert len(set(found.values())) == 1, found
    refused = found["gRPC"]
    assert (refused.code, refused.reason) == ("RESOURCE_EXHAUSTED", "OVERLOADED")
    assert refused.retry


def test_a_deadline(doors):
    decode = one("Decode", latents=tensor(1, 3))
    headers = {**CALLER, "request-timeout": "1e-9"}
    found = {
        name: door.fail(*decode, headers)
        for name, door in doors.by_name.items()
        if door.transport == "http"
    }
    late = Failure("DEADLINE_EXCEEDED", "the deadline has passed", "DEADLINE_EXCEEDED")
    assert found == dict.fromkeys(("/v1", "/v2", "/diffusers"), late)
    if doors.transport == "grpcio":
        return  # the library of gRPC ends a call at its deadline by itself, and says nothing
    with RawClient(doors.server.target) as client:
        path, body = decode[0], decode[1].SerializeToString()
        reply = client.call(path, body, grpc_timeout="1n", authorization=CALLER["authorization"])
    assert (reply.status, reply.text) == (4, late.message)
    assert reply.details.message == late.message


@pytest.fixture(params=TRANSPORTS)
def transport(request) -> str:
    return request.param


def test_no_model(folder, transport):
    options = (*PORTS, "--transport", transport)
    with Server(folder / "refused", folder / f"none-{transport}", *options) as server:
        found = Doors(server, transport).fail(*one("Decode", latents=tensor(1, 3)))
    assert len(found) == 5
    failure = found["gRPC"]
    assert (failure.code, failure.reason) == ("UNAVAILABLE", "NOT_READY")
    assert "no model" in failure.message
    assert set(found.values()) == {failure}, found


def test_a_drain_ends_calls_alike(folder, transport):
    options = (*PORTS, *LIMITS, "--drain-seconds", "0.2", "--transport", transport)
    with (
        Server(folder / "models", folder / f"drain-{transport}", *options) as server,
        ThreadPoolExecutor() as pool,
    ):
        doors = Doors(server.wait_until_serving(), transport)
        calls = {
            name: pool.submit(door.fail, *_LONG, {})
            for name, door in doors.by_name.items()
            if door.speaks != "diffusers"
        }
        wait_until(lambda: server.metric("latentserve_queue_rows") == len(calls))
        server.process.send_signal(signal.SIGTERM)
        found = {name: call.result(30) for name, call in calls.items()}
    message = "the server is stopping; another one will answer"
    wanted = Failure("UNAVAILABLE", message, "NOT_READY")
    assert set(found.values()) == {wanted}, found


def test_the_table_has_no_other_rows():
    page = (ROOT / "docs" / "operations.md").read_text()
    section = page.partition("\n## Errors\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\|[^|]*\| ([A-Z_]+)[^|]*\| (\d+)", section, re.MULTILINE)
    assert len(rows) == 9
    tested = {*SITUATIONS, "UNAUTHENTICATED", "DEADLINE_EXCEEDED", "UNAVAILABLE"}
    assert {code for code, _ in rows} == tested
    for code, status in rows:
        assert int(status) in (HTTP_STATUSES[code], 413 if code == "RESOURCE_EXHAUSTED" else 0)
    assert "CANCELLED, 499" in section
