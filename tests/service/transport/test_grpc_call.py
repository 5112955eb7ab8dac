"""gRPC over our own HTTP/2, on a real port, by clients that send what no gRPC library sends."""

import asyncio
import contextlib
import gzip
import itertools
import os
import shutil
import signal
import socket
import ssl
import subprocess
import time
import zlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import trustme
from google.rpc import error_details_pb2

from latentserve.v1 import latent_service_pb2 as pb
from service.transport.grpc_call import GrpcCall
from service.transport.http2 import connection
from tests.support.http2_client import LATENT, RawClient
from tests.support.http2_peer import (
    DATA,
    END_STREAM,
    INITIAL_WINDOW,
    PING,
    PREFACE,
    Peer,
    disconnect,
    headers,
    message,
    raw_frame,
    request_fields,
    rst_stream,
    settings_frame,
    window_update,
)
from tests.support.processes import Server
from tests.support.stubs import images
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until, wait_until_constant

MAX_MESSAGE = 4 * 2**20
SAMPLE = pb.SampleRequest(count=2, seed=1).SerializeToString()
HUGE_STREAM = pb.SampleStreamRequest(
    request=pb.SampleRequest(count=10**9, seed=1), chunk_rows=64
).SerializeToString()
LIMITS = ("--max-message-bytes", str(MAX_MESSAGE), "--max-queue-bytes", str(2 * MAX_MESSAGE))

BOMB = gzip.compress(bytes(100 * 2**20), 1)

OK, INVALID, LATE, NOT_FOUND, TOO_MUCH, UNIMPLEMENTED, INTERNAL, UNAUTHENTICATED = (
    0,
    3,
    4,
    5,
    8,
    12,
    13,
    16,
)
NO_ERROR, CANCEL = 0, 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("http2")
    write_tiny(folder / "models" / "one", shape=(1, 32, 32))
    return folder


@pytest.fixture(scope="module")
def server(folder):
    arguments = (*LIMITS, "--http-port", "0", "--transport", "http2")
    with Server(folder / "models", folder / "log", *arguments) as server:
        yield server.wait_until_serving()


@pytest.fixture
def raw(server):
    with RawClient(server.target) as connection:
        yield connection


def rss(server: Server) -> int:
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


# -------------------------------------------------------------------- requests


def test_a_call_is_answered(raw):
    reply = raw.call("Sample", SAMPLE)
    assert (reply.fields[":status"], reply.status, reply.ended) == ("200", OK, True)
    assert reply.fields["content-type"] == "application/grpc"
    (body,) = reply.messages
    assert list(pb.SampleResponse.FromString(body).images.tensor.shape) == [2, 1, 32, 32]


@pytest.mark.parametrize("content_type", ["application/json", "application/grpc-web", "", None])
def test_a_content_type_other_than_grpc_is_status_415(raw, content_type):
    fields = [(":method", "POST"), (":scheme", "http"), (":path", f"{LATENT}Sample")]
    fields += [] if content_type is None else [("content-type", content_type)]
    reply = raw.wait(raw.open_with(fields, ends=True))
    assert (reply.fields[":status"], reply.reset) == ("415", None)
    get = [(":method", "GET"), (":scheme", "http"), (":path", "/")]
    assert raw.wait(raw.open_with(get, ends=True)).fields[":status"] == "415"


@pytest.mark.parametrize("content_type", ["application/grpc+proto", "application/grpc;a=b"])
def test_variants_of_the_grpc_content_type_are_accepted(raw, content_type):
    fields = [(":method", "POST"), (":scheme", "http"), (":path", f"{LATENT}Sample")]
    number = raw.open_with([*fields, ("content-type", content_type)])
    raw.send(number, message(SAMPLE), ends=True)
    assert raw.wait(number).status == OK


@pytest.mark.parametrize("path", [f"{LATENT}Nothing", "/", "*", "/a%b\xe4\x7f" + "\xff" * 2000])
def test_an_unknown_method_is_unimplemented_and_named_in_the_message(raw, path):
    reply = raw.call(path, b"") if path.startswith("/") else None
    if reply is None:
        fields = [(":method", "POST"), (":scheme", "http"), (":path", path)]
        reply = raw.wait(raw.open_with([*fields, ("content-type", "application/grpc")], ends=True))
    assert reply.status == UNIMPLEMENTED
    assert reply.fields["grpc-message"].isascii()
    assert "Method not found" in reply.text
    assert sum(map(len, reply.fields.values())) < 8000


def test_a_unary_call_has_exactly_one_message(raw):
    none = raw.wait(raw.open("Sample", ends=True))
    assert (none.status, none.text) == (UNIMPLEMENTED, "request: got 0 messages, wanted 1")
    number = raw.open("Sample")
    raw.send(number, message(SAMPLE) + message(SAMPLE))  # refused before END_STREAM
    two = raw.wait(number)
    assert (two.status, two.text) == (UNIMPLEMENTED, "request: got more than 1 message, wanted 1")
    assert two.ended


@pytest.mark.parametrize("method", ["Sample", "SampleStream", "EncodeStream"])
@pytest.mark.parametrize("left", [1, 4, 5, 7])
def test_a_truncated_message_is_an_internal_error(raw, method, left):
    number = raw.open(method)
    raw.send(number, message(SAMPLE)[:left], ends=True)
    reply = raw.wait(number)
    assert (reply.status, reply.text) == (INTERNAL, "request: it ends within a message")


def test_a_message_that_is_no_protobuf_is_an_invalid_argument(raw):
    reply = raw.call("Sample", b"\xff\xff\xff")
    assert reply.status == INVALID
    assert raw.call("Sample", SAMPLE).status == OK


def test_errors_have_details_and_percent_encoded_text(raw):
    selector = pb.ModelSelector(name="ä%\n模" * 3)
    reply = raw.call("Sample", pb.SampleRequest(count=1, model=selector).SerializeToString())
    assert reply.status == NOT_FOUND
    assert reply.fields["grpc-message"].isascii()
    assert "ä%" in reply.text
    assert "模" in reply.text
    assert (reply.details.code, reply.details.message) == (NOT_FOUND, reply.text)
    info = error_details_pb2.ErrorInfo()
    assert reply.details.details[0].Unpack(info)
    assert info.reason == "MODEL_NOT_FOUND"


def test_metadata_beyond_the_limit_is_refused_and_the_connection_lives(raw):
    reply = raw.call("Sample", SAMPLE, x_large="a" * 17_000)
    assert (reply.status, "metadata" in reply.text) == (TOO_MUCH, True)
    assert raw.call("Sample", SAMPLE).status == OK


# ------------------------------------------------------------------ deadlines


@pytest.mark.parametrize(
    ("timeout", "status"),
    [
        ("1n", LATE), ("99999999n", OK), ("0S", LATE), ("5S", OK), ("5000m", OK), ("5000000u", OK),
        ("1M", OK), ("99999999H", OK), ("1H", OK),
        # Malformed, and so ignored.
        ("5", OK), ("-1S", OK), ("1s", OK), ("123456789S", OK), ("", OK), ("1.5S", OK),
    ],
)  # fmt: skip
def test_a_deadline_may_have_any_unit(raw, timeout, status):
    assert raw.call("Sample", SAMPLE, grpc_timeout=timeout).status == status


@pytest.mark.parametrize("method", ["Sample", "EncodeStream"])
def test_a_deadline_expires_while_the_request_is_incomplete(raw, method):
    number = raw.open(method, grpc_timeout="200m")
    raw.send(number, message(SAMPLE)[:5])
    reply = raw.wait(number)
    assert (reply.status, reply.ended) == (LATE, True)
    assert raw.call("Sample", SAMPLE).status == OK


@pytest.mark.parametrize("method", ["Sample", "SampleStream"])
def test_a_deadline_expires_while_the_reply_waits_for_flow_control(server, method):
    body = HUGE_STREAM
    if method == "Sample":
        body = pb.SampleRequest(count=100, seed=1).SerializeToString()
    with RawClient(server.target, window=1000, grants=False) as raw:
        began = time.monotonic()
        reply = raw.call(method, body, grpc_timeout="400m")
        assert 0.3 < time.monotonic() - began < 5
        assert (reply.reset, len(reply.body)) == (CANCEL, 1000)
        assert raw.call("GetServerInfo", b"").status == OK


@pytest.mark.parametrize("outcome", ["sent", "sent late", "reset"])
async def test_the_deadline_timer_is_cancelled_when_the_reply_is_sent_or_the_stream_reset(outcome):
    async def unary(_rpc: Any, raw: bytes, _call: Any, send: Any) -> None:
        send((raw,))

    def accept(stream: Any) -> None:
        rpc: Any = SimpleNamespace(takes_stream=False, gives_stream=False, plan=None)
        dispatcher: Any = SimpleNamespace(unary=unary)
        stream.receiver = GrpcCall(stream, rpc, dispatcher, 4096, lambda _change: None)

    def timers() -> list[Any]:
        loop: Any = asyncio.get_running_loop()
        return [timer for timer in loop._scheduled if not timer.cancelled()]

    peer = Peer(accept)
    await peer.shake_hands((INITIAL_WINDOW, 1000 if outcome == "sent" else 0))
    call = headers(1, request_fields(grpc_timeout="1H"))
    await peer.send(call, raw_frame(DATA, END_STREAM, 1, message(b"body")))
    assert len(timers()) == (0 if outcome == "sent" else 1)
    if outcome == "sent late":
        await peer.send(window_update(1, 1000))
    elif outcome == "reset":
        await peer.send(rst_stream(1))
    assert not timers()
    await disconnect(peer)


def test_a_reset_by_the_caller_cancels_the_computation(server, raw):
    before = server.metric("latentserve_requests_total", rpc="SampleStream", code="CANCELLED")
    number = raw.open("SampleStream")
    raw.send(number, message(HUGE_STREAM), ends=True)
    raw.wait_for(lambda: len(raw.replies[number].messages) > 2)
    raw.h2.reset_stream(number, CANCEL)
    raw.flush()
    wait_until(lambda: server.metric("latentserve_queue_rows") == 0, seconds=20)
    now = server.metric("latentserve_requests_total", rpc="SampleStream", code="CANCELLED")
    assert now == before + 1
    assert raw.call("Sample", SAMPLE).status == OK


def test_a_lost_connection_cancels_the_computation(server):
    before = server.metric("latentserve_requests_total", rpc="SampleStream", code="CANCELLED")
    with RawClient(server.target) as raw:
        number = raw.open("SampleStream")
        raw.send(number, message(HUGE_STREAM), ends=True)
        raw.wait_for(lambda: raw.replies[number].messages)
    name, labels = "latentserve_requests_total", {"rpc": "SampleStream", "code": "CANCELLED"}
    wait_until(lambda: server.metric(name, **labels) == before + 1, seconds=20)


# --------------------------------------------------------- sizes, compression


@pytest.mark.parametrize(
    ("encoding", "compress"), [("gzip", gzip.compress), ("deflate", zlib.compress)]
)
def test_requests_may_be_compressed(raw, encoding, compress):
    reply = raw.call("Sample", compress(SAMPLE), 1, grpc_encoding=encoding)
    assert reply.status == OK
    assert raw.call("Sample", SAMPLE, 0, grpc_encoding=encoding).status == OK
    for broken in (b"", b"nonsense", compress(SAMPLE)[:-3], compress(SAMPLE) * 2):
        assert raw.call("Sample", broken, 1, grpc_encoding=encoding).status == INVALID
    number = raw.open("EncodeStream", grpc_encoding=encoding)
    body = pb.EncodeStreamRequest(
        request=pb.EncodeRequest(images=images(np.zeros((1, 32, 32), np.uint8)))
    ).SerializeToString()
    raw.send(number, message(compress(body), 1) + message(body), ends=True)
    assert len(raw.wait(number).messages) == 2


@pytest.mark.parametrize("method", ["Sample", "EncodeStream"])
@pytest.mark.parametrize("lies", [False, True])
def test_a_decompression_bomb_is_refused_at_little_cost(server, raw, method, lies):
    bomb = bytearray(BOMB)
    if lies:
        bomb[-4:] = bytes(4)
    before = rss(server)
    began = time.monotonic()
    reply = raw.call(method, bytes(bomb), 1, grpc_encoding="gzip")
    assert (reply.status, "larger than max" in reply.text) == (TOO_MUCH, True)
    assert time.monotonic() - began < 5
    assert rss(server) - before < 32 * 2**20


def test_an_unsupported_encoding_is_unimplemented_and_lists_the_supported_ones(raw):
    reply = raw.call("Sample", SAMPLE, 1, grpc_encoding="snappy")
    assert reply.status == UNIMPLEMENTED
    assert reply.fields["grpc-accept-encoding"] == "identity,deflate,gzip"
    assert raw.call("Sample", SAMPLE, 0, grpc_encoding="snappy").status == OK


def test_an_invalid_compressed_flag_is_an_internal_error(raw):
    for flag in (1, 2, 255):
        assert raw.call("Sample", SAMPLE, flag).status == INTERNAL


@pytest.mark.parametrize("method", ["Sample", "EncodeStream"])
def test_a_message_that_is_too_large_is_refused_by_its_prefix(raw, method):
    number = raw.open(method)
    raw.send(number, b"\0" + (MAX_MESSAGE + 1).to_bytes(4, "big"))
    reply = raw.wait(number)
    assert (reply.status, str(MAX_MESSAGE) in reply.text) == (TOO_MUCH, True)
    assert (reply.ended, reply.reset in (None, NO_ERROR)) == (True, True)


@pytest.mark.parametrize("method", ["Encode", "EncodeStream"])
def test_a_large_request_without_a_token_is_refused_before_it_is_complete(folder, tmp_path, method):
    (tmp_path / "tokens").write_text("0123456789abcdef")
    arguments = ("--token-file", str(tmp_path / "tokens"), "--transport", "http2")
    with (
        Server(folder / "models", tmp_path / "log", *arguments) as server,
        RawClient(server.target) as raw,
    ):
        part = message(bytes(100_000))[:1000]
        number = raw.open(method)
        raw.send(number, part)
        assert raw.wait(number).status == UNAUTHENTICATED
        number = raw.open(method, authorization="Bearer 0123456789abcdef")
        raw.send(number, part)
        raw.read(0.2)
        # Perhaps UNAVAILABLE, as the server is still loading, but not UNAUTHENTICATED.
        assert raw.replies[number].fields.get("grpc-status") in (None, "14")


def test_nothing_is_decompressed_for_a_caller_without_a_token(folder, tmp_path):
    """A message of 65 KB takes a third of a second, during which no other call is answered."""
    (tmp_path / "tokens").write_text("0123456789abcdef")
    arguments = ("--token-file", str(tmp_path / "tokens"), "--transport", "http2")
    with (
        Server(folder / "models", tmp_path / "log", *arguments, "--http-port", "0") as server,
        RawClient(server.target) as raw,
    ):
        server.wait_until_serving()
        for method in ("Encode", "Sample", "SampleStream", "EncodeStream"):
            given: dict[str, str] = {"grpc_encoding": "deflate"}
            assert raw.call(method, b"nonsense", 1, **given).status == UNAUTHENTICATED, method
            given["authorization"] = "Bearer 0123456789abcdef"
            assert raw.call(method, b"nonsense", 1, **given).status == INVALID, method
            labels = {"rpc": method, "code": "UNAUTHENTICATED"}
            assert server.metric("latentserve_requests_total", **labels) == 1
        # Health needs no token, and no large message.
        reply = raw.call("/grpc.health.v1.Health/Check", zlib.compress(bytes(100_000)), 1, **given)
        assert (reply.status, "vs. 65536" in reply.text) == (TOO_MUCH, True)
        request = zlib.compress(b"")
        assert raw.call("/grpc.health.v1.Health/Check", request, 1, **given).status == OK


def test_incomplete_requests_share_a_limit_and_small_ones_pass(server, raw):
    part = message(bytes(MAX_MESSAGE))[:1_000_000]
    numbers = [raw.open("Encode") for _ in range(12)]
    for number in numbers:
        raw.send(number, part)
    raw.wait_for(lambda: any(raw.replies[number].over for number in numbers))
    refused = [raw.replies[number] for number in numbers if raw.replies[number].over]
    assert all(reply.status == TOO_MUCH for reply in refused)
    assert all("grpc-retry-pushback-ms" in reply.fields for reply in refused)
    assert len(refused) < 6
    with RawClient(server.target) as other:
        assert other.call("Sample", SAMPLE).status == OK
        assert rss(server) < 2**30
    for number in numbers:
        if not raw.replies[number].over:
            raw.h2.reset_stream(number, CANCEL)
    raw.flush()
    body = pb.EncodeRequest(images=images(np.zeros((900, 32, 32), np.float32)))
    assert raw.call("Encode", body.SerializeToString()).status == OK


def test_many_empty_messages_in_a_frame_cost_little(server, raw):
    """100,000 empty messages, none of which is an image."""
    number = raw.open("EncodeStream")
    raw.send(number, bytes(5) * 100_000, ends=True)
    began = time.monotonic()
    reply = raw.wait(number)
    assert reply.status == INVALID
    assert time.monotonic() - began < 5
    assert rss(server) < 2**30


# -------------------------------------------------- concurrency, back-pressure


def test_concurrent_calls_on_one_connection_get_their_own_replies(raw):
    wanted = {}
    for seed in range(8):
        request = pb.SampleRequest(count=1, seed=seed).SerializeToString()
        wanted[seed] = raw.call("Sample", request).messages[0]
    assert len(set(wanted.values())) == 8
    numbers = {}
    for turn in range(500):
        number = raw.open("Sample")
        numbers[number] = turn % 8
        request = pb.SampleRequest(count=1, seed=turn % 8).SerializeToString()
        raw.h2.send_data(number, message(request), end_stream=True)
    raw.flush()
    raw.wait_for(lambda: all(raw.replies[number].over for number in numbers))
    for number, seed in numbers.items():
        assert raw.replies[number].status == OK
        got = pb.SampleResponse.FromString(raw.replies[number].messages[0])
        want = pb.SampleResponse.FromString(wanted[seed])
        assert np.allclose(
            np.frombuffer(got.images.tensor.data, np.float32),
            np.frombuffer(want.images.tensor.data, np.float32),
            atol=1e-5,
        )


@pytest.mark.parametrize("held_by", ["window", "socket"])
def test_a_stream_that_its_caller_does_not_read_stops_computing(server, held_by):
    """Both HTTP/2's and TCP's flow control reach back to the engine."""
    with RawClient(
        server.target, window=2**16 if held_by == "window" else 2**30, grants=False
    ) as raw:
        number = raw.open("SampleStream")
        raw.send(number, message(HUGE_STREAM), ends=True)
        raw.wait_for(lambda: raw.replies[number].body or held_by == "socket")

        def computed() -> float:
            return server.metric("latentserve_batch_rows_sum")

        rows = wait_until_constant(computed, 0.2)
        before = rss(server)
        # A batch takes milliseconds: by now there would have been hundreds.
        assert wait_until_constant(computed, 0.2) == rows
        assert rss(server) - before < 8 * 2**20


def test_a_client_that_does_not_read_its_refusals_is_not_read_from(server):
    host, port = server.target.rsplit(":", 1)
    before = rss(server)
    with socket.socket() as sock:
        # Otherwise the kernel buffers up to 32 MiB of responses that nobody reads.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65_536)
        sock.settimeout(1)
        sock.connect((host, int(port)))
        sock.sendall(PREFACE + settings_frame())
        with contextlib.suppress(TimeoutError):
            for number in itertools.count(1, 2):
                sock.sendall(headers(number, request_fields("/x"), 0x5))
                # The server's kernel buffers up to 32 MiB that the server does not read.
                assert number < 4_000_000
        assert rss(server) - before < 32 * 2**20
    with RawClient(server.target) as other:
        assert other.call("Sample", SAMPLE).status == OK


@pytest.mark.slow
def test_a_connection_beyond_its_age_shuts_down_after_its_calls(folder, tmp_path):
    arguments = ("--max-connection-age-seconds", "1", "--transport", "http2")
    with Server(folder / "models", tmp_path / "log", *arguments) as server:
        server.wait_until_serving()
        request = pb.SampleRequest(count=4096, seed=1)
        body = pb.SampleStreamRequest(request=request, chunk_rows=64).SerializeToString()
        with RawClient(server.target, window=40_000, grants=False) as raw:
            number = raw.open("SampleStream")
            raw.send(number, message(body), ends=True)
            raw.wait_for(lambda: len(raw.goaways) == 1)
            began = time.monotonic()
            # The second one follows once the PING between them is acknowledged.
            raw.wait_for(lambda: len(raw.goaways) == 2)
            assert time.monotonic() - began < 8
            assert not raw.replies[number].over
            raw.grants = True
            raw.h2.increment_flow_control_window(2**24, number)
            raw.flush()
            while not raw.closed:
                raw.read()
            reply = raw.replies[number]
            assert (reply.ended, reply.status) == (True, OK)
            assert len(reply.messages) == 4096 // 64
            assert raw.goaways == [NO_ERROR, NO_ERROR]


def test_idle_and_malformed_connections_leak_no_file_descriptors(server):
    def files() -> int:
        return len(list(Path(f"/proc/{server.process.pid}/fd").iterdir()))

    host, port = server.target.rsplit(":", 1)
    before = files()
    for turn in range(150):
        with socket.create_connection((host, int(port))) as sock:
            if turn % 3:
                sock.sendall(os.urandom(40) if turn % 3 == 1 else b"PRI * HT")
    wait_until(lambda: files() <= before, seconds=20)


# -------------------------------------------------------------- other clients


def test_http_1_is_answered_that_this_port_speaks_grpc(server):
    host, port = server.target.rsplit(":", 1)
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
        answer = b""
        while piece := sock.recv(4096):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 505 ")
    assert answer.endswith(b"gRPC, which is HTTP/2.\n")


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_curl_is_answered(server, tmp_path):
    if "HTTP2" not in subprocess.run(["curl", "-V"], capture_output=True, text=True).stdout:
        pytest.skip("this curl has no HTTP/2")
    (tmp_path / "body").write_bytes(message(SAMPLE))
    done = subprocess.run(
        ["curl", "-sS", "--http2-prior-knowledge", "--data-binary", f"@{tmp_path / 'body'}",
         "-H", "content-type: application/grpc", "-H", "te: trailers", "-H", "expect:",
         "-D", str(tmp_path / "heads"), "-o", str(tmp_path / "reply"),
         f"http://{server.target}{LATENT}Sample"],
        capture_output=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    heads = (tmp_path / "heads").read_text().lower()
    assert "http/2 200" in heads
    assert "grpc-status: 0" in heads
    reply = (tmp_path / "reply").read_bytes()
    assert pb.SampleResponse.FromString(reply[5:]).seed == 1
    plain = ["curl", "-sS", "-o", "/dev/null", "-w", "%{http_code}", f"http://{server.target}/"]
    done = subprocess.run(plain, capture_output=True, text=True, timeout=30, check=False)
    assert done.stdout == "505"


@pytest.mark.skipif(shutil.which("h2load") is None, reason="there is no h2load")
@pytest.mark.parametrize("more", [(), ("--header-table-size=0", "-w", "10", "-W", "12")])
def test_h2load_is_answered(server, tmp_path, more):
    (tmp_path / "body").write_bytes(message(pb.SampleRequest(count=30).SerializeToString()))
    done = subprocess.run(
        ["h2load", "-n", "600", "-c", "3", "-m", "20", *more, "-d", str(tmp_path / "body"),
         "-H", "content-type: application/grpc", "-H", "te: trailers",
         f"http://{server.target}{LATENT}Sample"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert "600 total, 600 started, 600 done, 600 succeeded, 0 failed" in done.stdout, done.stdout


# ------------------------------------------------------------------------ TLS


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def encrypted(folder, authority):
    files = tls_files(folder, authority)
    with Server(folder / "models", folder / "tls.log", *files, "--transport", "http2") as server:
        yield server


def tls_files(folder: Path, authority: trustme.CA) -> tuple[str, ...]:
    certificate = authority.issue_cert("localhost")
    certificate.private_key_pem.write_to_path(str(folder / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    return ("--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"))


def trusting(authority: trustme.CA, *protocols: str) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    if protocols:
        context.set_alpn_protocols(protocols)
    return context


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_tls_negotiates_http_2_by_alpn(encrypted, authority, version):
    context = trusting(authority, "http/1.1", "h2")
    context.minimum_version = context.maximum_version = version
    with RawClient(encrypted.target, tls=context) as raw:
        assert raw.socket.selected_alpn_protocol() == "h2"
        cipher, _, _ = raw.socket.cipher()
        assert "GCM" in cipher or "CHACHA20" in cipher
        assert raw.call("/grpc.health.v1.Health/Check", b"").status == OK
        large = raw.call("Sample", pb.SampleRequest(count=1000).SerializeToString())
        assert len(large.body) > 4_000_000


def test_tls_without_http_2_is_answered_by_505_or_closed(encrypted, authority):
    host, port = encrypted.target.rsplit(":", 1)
    for protocols in ((), ("http/1.1",)):
        with (
            socket.create_connection((host, int(port)), 10) as sock,
            trusting(authority, *protocols).wrap_socket(sock, server_hostname="localhost") as tls,
        ):
            assert tls.selected_alpn_protocol() is None
            tls.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert tls.recv(100).startswith(b"HTTP/1.1 505")
    with RawClient(encrypted.target, tls=trusting(authority)) as raw:
        assert raw.call("/grpc.health.v1.Health/Check", b"").status == OK
    with socket.create_connection((host, int(port)), 10) as sock:
        sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(30))
        while sock.recv(1000):
            pass


@pytest.mark.slow
@pytest.mark.parametrize("is_encrypted", [False, True], ids=["plain", "tls"])
def test_shutdown_delivers_the_reply_while_the_caller_keeps_sending(
    folder, authority, tmp_path, is_encrypted
):
    """Closing a socket with unread input resets it, and the client loses what it was sent."""
    files = tls_files(folder, authority) if is_encrypted else ()
    arguments = ("--transport", "http2", "--http-port", "0", *files)
    with Server(folder / "models", tmp_path / "log", *arguments) as server:
        if is_encrypted:
            wait_until(lambda: "serving" in server.log.read_text(), seconds=30)
        else:
            server.wait_until_serving()
        with RawClient(
            server.target, 2**24, tls=trusting(authority) if is_encrypted else None
        ) as raw:
            number = raw.open("Sample")
            body = pb.SampleRequest(count=400, format=pb.IMAGE_FORMAT_UINT8).SerializeToString()
            raw.send(number, message(body), ends=True)
            wait_until(
                lambda: server.metric("latentserve_requests_total", rpc="Sample") == 1, seconds=10
            )
            began = time.monotonic()
            os.kill(server.process.pid, signal.SIGTERM)
            # The client reads nothing yet, and keeps sending until the server, which waits for
            # an answer to its PING no longer than this, has closed its side.
            while time.monotonic() - began < connection._GOAWAY_SECONDS + 0.2:
                with contextlib.suppress(OSError):
                    raw.socket.sendall(raw_frame(PING, 0, 0, b"12345678"))
                time.sleep(0.02)
            while not raw.closed:
                raw.read()
            reply = raw.replies[number]
            assert (reply.ended, reply.status) == (True, OK)
            assert len(reply.body) > 400 * 32 * 32
        assert server.process.wait(10) == 0


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion")
def test_tls_below_1_2_is_refused(encrypted, authority):
    context = trusting(authority, "h2")
    context.minimum_version = ssl.TLSVersion.TLSv1
    context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with pytest.raises(ssl.SSLError):
        RawClient(encrypted.target, tls=context)
