"""docs/troubleshooting.md quotes the messages that the program really prints."""

import re
import shutil
import socket
import sys

import grpc
import numpy as np
import pytest

from bundle import BundleError, SignatureError, open_bundle, sign, verify
from latentserve import jobs
from latentserve.cli import main
from latentserve.client import Client, Retry
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import latent_service_pb2_grpc
from tests.support import ROOT
from tests.support.keys import write_keys
from tests.support.processes import MNIST, Server, latentserve

PAGE = " ".join((ROOT / "docs" / "troubleshooting.md").read_text().split())


def assert_quoted(message: str, *parts: str) -> None:
    for part in parts:
        assert part in message
        assert part in PAGE


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server of the models in the repository, which the page names."""
    with Server(None, tmp_path_factory.mktemp("server") / "log", *MNIST) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def client(server):
    with Client(server.target, retry=Retry(attempts=1)) as client:
        yield client


def error_of(call) -> str:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each caller looks at the message
        call()
    return str(caught.value)


def test_the_page_quotes_the_error_of_a_command_that_is_not_installed(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "service", None)
    monkeypatch.delitem(sys.modules, "service.cli", raising=False)
    assert main(["serve"]) == 1
    message = capsys.readouterr().err
    assert " ".join(message.split()) in PAGE


def test_the_page_quotes_the_error_of_a_taken_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        message = latentserve("serve", "--port", port, "--http-port", "off").stderr
    assert_quoted(message, "cannot listen on 127.0.0.1:", "Address already in use. Remedy: another")


def test_the_page_quotes_the_error_of_cuda_on_a_cpu_build():
    message = latentserve("serve", "--device", "cuda", "--port", "0", "--http-port", "off").stderr
    if "has no CUDA" not in message:
        pytest.skip("there is CUDA here")
    assert " ".join(message.split()) in PAGE


def test_the_page_quotes_the_error_of_an_unreachable_server():
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    with Client(f"localhost:{port}", retry=Retry(attempts=1)) as nobody:
        message = error_of(lambda: nobody.info(timeout=5))
    assert_quoted(message, " cannot be reached (", "Connection refused)")


@pytest.mark.parametrize(
    ("call", "part"),
    [
        (
            lambda client: client.encode(np.zeros((2, 1, 32, 32), np.uint8)),
            "images.tensor.shape: got [2, 1, 32, 32], wanted [N, 1, 28, 28] or [N, 28, 28] or",
        ),
        (
            lambda client: client.encode(np.full((1, 28, 28), 255.0, np.float32)),
            "images.tensor.data: got values from 255 to 255, wanted values from 0 to 1 (or UINT8)",
        ),
        (
            lambda client: client.encode([b"\x89PNG\r\n\x1a\n and no more"]),
            "images.encoded.files[0]: got a file that is no picture, or damaged, wanted a PNG",
        ),
        (
            lambda client: client.decode(np.zeros((2, 2))),
            "latents.shape: got [2, 2], wanted [N, 40]",
        ),
        (
            lambda client: client.sample(1, model="nope"),
            "model.name: got 'nope', wanted one of emoji, fonts, mnist, mnist-style, mnist2d",
        ),
        (
            lambda client: client.sample(1, version=9),
            "model.version: got 9, wanted 2 of mnist (or 0 for the highest)",
        ),
        (
            lambda client: client.sample(1, model="mnist2d", label=3),
            "label: got 3, but the prior of mnist2d knows no classes",
        ),
    ],
    ids=["shape", "range", "picture", "latents", "model", "version", "label"],
)
def test_the_page_quotes_the_errors_of_invalid_values(client, call, part):
    assert_quoted(error_of(lambda: call(client)), part)


def test_the_page_quotes_the_error_of_a_missed_deadline(client):
    message = error_of(lambda: client.sample(4096, seed=1, timeout=0.001))
    # Server and client have different messages; either may notice first.
    assert message.split(" with ")[0] in PAGE


def test_the_page_quotes_the_error_of_a_message_that_is_too_large(server):
    request = pb.EncodeRequest()
    request.images.tensor.data = bytes(65 * 2**20)
    with grpc.insecure_channel(server.target) as channel:
        stub = latent_service_pb2_grpc.LatentServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Encode(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert_quoted(caught.value.details(), "message: larger than max (", "see max_message_bytes)")


def test_the_page_quotes_the_error_of_a_damaged_bundle(tmp_path):
    folder = shutil.copytree(ROOT / "models" / "mnist" / "2", tmp_path / "mnist" / "2")
    graph = folder / "decoder.onnx"
    content = bytearray(graph.read_bytes())
    content[len(content) // 2] ^= 1
    graph.write_bytes(content)
    with pytest.raises(BundleError) as caught:
        open_bundle(folder)
    shown = re.sub(r"\b([0-9a-f]{4})[0-9a-f]{60}\b", r"\1...", str(caught.value))
    assert re.search(r"decoder\.onnx: SHA-256 \w{4}\.\.\., wanted \w{4}\.\.\.", shown)
    assert re.search(r"decoder\.onnx: SHA-256 \w{4}\.\.\., wanted \w{4}\.\.\.", PAGE)


def test_the_page_quotes_the_errors_of_signatures(tmp_path):
    folder = shutil.copytree(ROOT / "models" / "mnist" / "2", tmp_path / "m" / "mnist" / "2")
    ours, theirs = write_keys(tmp_path, "signing"), write_keys(tmp_path, "theirs")
    for key in (None, theirs):
        if key is not None:
            sign(folder, key.private)
        with pytest.raises(SignatureError) as caught:
            verify(folder, [ours.public])
        assert str(caught.value).replace(f"{tmp_path}/", "") in PAGE


def test_the_page_quotes_the_error_of_a_folder_with_another_job(client, tmp_path):
    jobs.sample(client, 4, tmp_path / "digits", seed=7)
    message = error_of(lambda: jobs.sample(client, 4, tmp_path / "digits", seed=8))
    assert_quoted(message, "digits: holds another job: seed: got 8, the job has 7")
