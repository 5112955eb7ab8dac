"""The gateway's ports and connections: TLS, workers, drains, slow and half-open peers, memory."""

import io
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress

import numpy as np
import pytest
import trustme

from service.gateway import connection, receiving
from tests.support import ROOT
from tests.support.http import Caller, npy
from tests.support.in_process import refused_start
from tests.support.processes import TRANSPORTS, Server, free_port, latentserve
from tests.support.tiny import write_tiny
from tests.support.waiting import wait_until

MODEL = "/v1/models/one"
PORTS = ("--gateway-port", "0", "--http-port", "0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway-life")
    write_tiny(folder / "models" / "one")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    limits = ("--max-queue-bytes", "4000000", "--max-message-bytes", "4000000")
    with Server(folder / "models", folder / "log", *PORTS, *limits) as running:
        yield running.wait_until_serving()


@pytest.fixture(scope="module")
def gateway(server):
    return Caller(server.gateway)


def test_what_is_off_costs_nothing():
    program = (
        "import sys; from service.server import run; "
        "print(sorted({'starlette', 'uvicorn', 'h11', 'python_multipart'} & sys.modules.keys()))"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        (("--gateway-port", "70000"), "gateway-port"),
        (("--gateway-port", "50051", "--port", "50051"), "the port for gRPC"),
        (("--gateway-port", "8080", "--http-port", "8080"), "that of --http-port"),
        (("--gateway-port", "0", "--host", "0.0.0.0"), "--gateway-open"),
    ],
)
def test_wrong_settings_are_refused(folder, options, wanted):
    assert wanted in refused_start("--models", folder / "models", *options).stderr


def test_a_taken_port_is_refused(folder):
    port = free_port()
    with closing(socket.create_server(("127.0.0.1", port))):
        options = ("--port", "0", "--http-port", "off", "--gateway-port", str(port))
        done = latentserve("serve", "--models", folder / "models", *options)
    message = done.stderr
    assert done.returncode == 2
    assert f"127.0.0.1:{port}" in message
    assert "--gateway-port" in message


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_workers_share_the_port_and_tell_the_metrics_of_all(folder, transport):
    options = (*PORTS, "--workers", "2", "--transport", transport)
    with Server(folder / "models", folder / f"workers-{transport}", *options) as server:
        server.wait_until_serving()
        caller = Caller(server.gateway)

        def ask(seed):
            return caller.get(f"{MODEL}:sample?count=1&seed={seed}").status

        with ThreadPoolExecutor(4) as pool:
            assert set(pool.map(ask, range(40))) == {200}
        page = caller.get("/v1/metrics").body.decode()
        counts = re.findall(
            r'requests_total{code="OK",model="one",rpc="Sample",transport="http",'
            r'worker="(\d)"} (\d+)',
            page,
        )
        assert {worker for worker, _ in counts} == {"0", "1"}
        assert sum(int(count) for _, count in counts) == 40


def test_tls_is_that_of_the_grpc_port(folder):
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1", "localhost")
    issued.cert_chain_pems[0].write_to_path(str(folder / "cert.pem"))
    issued.private_key_pem.write_to_path(str(folder / "key.pem"))
    options = (
        "--tls-cert", str(folder / "cert.pem"), "--tls-key", str(folder / "key.pem"), *PORTS,
    )  # fmt: skip
    with Server(folder / "models", folder / "tls", *options) as server:
        assert server.gateway.startswith("https://")
        context = ssl.create_default_context()
        authority.configure_trust(context)
        caller = Caller(server.gateway, context=context)
        assert caller.get(f"{MODEL}:sample?count=1").status == 200
        with closing(socket.create_connection(caller.address, 10)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert not plain.recv(100).startswith(b"HTTP/1.1 2")
        wait_until(
            lambda: server.metric("latentserve_tls_handshake_failures_total", reason="plaintext")
        )


def test_requests_in_flight_finish_at_a_stop_and_connections_close(folder):
    with Server(folder / "models", folder / "drain", *PORTS) as server:
        server.wait_until_serving()
        caller = Caller(server.gateway)
        with closing(caller.connect()) as idle, closing(caller.connect()) as busy:
            idle.request("GET", "/v1/models")
            idle.getresponse().read()
            body = npy(np.zeros((64, 1, 4, 4), np.float32))
            headers = {"content-type": "application/x-npy"}
            busy.request("POST", f"{MODEL}:score?draws=1000&seed=1", body, headers)
            wait_until(lambda: server.metric("latentserve_calls_open", transport="http") == 1)
            server.process.send_signal(signal.SIGTERM)
            reply = busy.getresponse()
            assert reply.status == 200
            assert reply.getheader("connection") == "close"
            assert len(np.load(io.BytesIO(reply.read()))["elbo"]) == 64
            assert idle.sock.recv(1) == b""
        assert server.process.wait(20) == 0


def test_a_connection_made_just_before_a_stop_may_still_send_its_first_request(folder):
    with Server(folder / "models", folder / "first", *PORTS) as server:
        server.wait_until_serving()
        caller = Caller(server.gateway)
        with (
            closing(caller.connect()) as fresh,
            closing(socket.create_connection(caller.address)) as silent,
        ):
            fresh.connect()
            wait_until(lambda: server.metric("latentserve_connections_open", transport="http") == 2)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: refuses(caller.address))
            fresh.request("GET", f"{MODEL}:sample?count=1&seed=1")
            reply = fresh.getresponse()
            assert reply.status == 200
            assert reply.getheader("connection") == "close"
            # One that says nothing does not hold up the stop.
            assert silent.recv(1) == b""
        assert server.process.wait(5) == 0


def refuses(address) -> bool:
    """Whether a port no longer accepts connections."""
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


def test_what_does_not_finish_in_time_is_answered_503(folder):
    options = (*PORTS, "--drain-seconds", "0.2")
    with Server(folder / "models", folder / "cut", *options) as server:
        server.wait_until_serving()
        caller = Caller(server.gateway)
        with closing(caller.connect()) as busy:
            body = npy(np.zeros((2000, 1, 4, 4), np.float32))
            headers = {"content-type": "application/x-npy"}
            busy.request("POST", f"{MODEL}:score?draws=5000&seed=1", body, headers)
            wait_until(lambda: server.metric("latentserve_calls_open", transport="http") == 1)
            server.process.send_signal(signal.SIGTERM)
            reply = busy.getresponse()
            assert reply.status == 503
            assert b"stopping" in reply.read()
        assert server.process.wait(20) == 0


def test_old_connections_are_closed_after_a_reply(folder):
    options = (*PORTS, "--max-connection-age-seconds", "1")
    with Server(folder / "models", folder / "age", *options) as server:
        server.wait_until_serving()
        with closing(Caller(server.gateway).connect()) as connection:
            connection.request("GET", "/v1/models")
            first = connection.getresponse()
            first.read()
            assert first.getheader("connection") is None
            time.sleep(1.1)
            connection.request("GET", "/v1/models")
            assert connection.getresponse().getheader("connection") == "close"


@pytest.mark.slow
def test_heads_that_never_end_hold_no_connection(gateway, server):
    seconds = connection._HEAD_SECONDS
    assert seconds <= 10
    began = time.monotonic()
    with ExitStack() as stack:
        silent, slow = (
            stack.enter_context(closing(socket.create_connection(gateway.address, 30)))
            for _ in range(2)
        )
        for part in (b"GET /v1/models HTTP/1.1\r\n", b"Host: localhost\r\n"):
            slow.sendall(part)
        stopped = threading.Event()

        def drip():
            while not stopped.wait(0.5):
                try:
                    slow.sendall(b"x")
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        try:
            assert silent.recv(1) == b""
            with suppress(ConnectionResetError):
                assert slow.recv(1) == b""
        finally:
            stopped.set()
            thread.join()
    assert time.monotonic() - began < seconds + 10
    wait_until(lambda: server.metric("latentserve_connections_open", transport="http") == 0)


@pytest.mark.slow
def test_unfinished_bodies_hold_bounded_memory(gateway, server):
    head = (
        b"POST /v1/models/one:encode HTTP/1.1\r\nHost: localhost\r\n"
        b"content-type: application/x-npy\r\ncontent-length: 3000000\r\n\r\n"
    )
    with ExitStack() as stack:
        socks = [
            stack.enter_context(closing(socket.create_connection(gateway.address, 30)))
            for _ in range(6)
        ]
        for sock in socks:
            sock.sendall(head)
            sock.setblocking(False)
            sent, deadline = 0, time.monotonic() + 5
            while sent < 1_500_000 and time.monotonic() < deadline:
                try:
                    sent += sock.send(b"x" * 65536)
                except BlockingIOError:
                    time.sleep(0.01)
                except OSError:
                    break
        # The others still get an answer.
        assert gateway.get(f"{MODEL}:sample?count=1").status == 200
        wait_until(
            lambda: (
                server.metric("latentserve_requests_total", code="RESOURCE_EXHAUSTED") > 0
                or server.metric("latentserve_connections_open", transport="http") < 6
            ),
            seconds=30,
        )
    wait_until(lambda: server.metric("latentserve_queue_bytes") == 0)
    assert gateway.get(f"{MODEL}:sample?count=1").status == 200


def test_replies_that_nobody_reads_count_and_are_dropped_for_others(gateway, server):
    query = "count=100000&seed=1&chunk_rows=2048"
    request = f"GET {MODEL}:sample_stream?{query} HTTP/1.1\r\nHost: localhost\r\n"
    request += "accept: application/x-npy\r\n\r\n"
    with ExitStack() as stack:
        for _ in range(8):
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.connect(gateway.address)
            stack.enter_context(closing(sock))
            sock.sendall(request.encode())
        wait_until(lambda: server.metric("latentserve_queue_bytes") > 0)
        # A caller who reads gets an answer, in the end.
        wait_until(lambda: gateway.get(f"{MODEL}:sample?count=4096").status == 200, seconds=60)
    wait_until(lambda: server.metric("latentserve_queue_bytes") == 0)


def test_random_bytes_leave_the_server_well(gateway, server):
    random = np.random.default_rng(0)
    starts = (
        b"", b"GET ", b"POST /v1/models/one:encode HTTP/1.1\r\nHost: localhost\r\n",
        b"POST /v1/models/one:decode HTTP/1.1\r\nHost: localhost\r\ncontent-type: "
        b"application/json\r\ncontent-length: 40\r\n\r\n",
    )  # fmt: skip
    for index in range(200):
        with closing(socket.create_connection(gateway.address, 10)) as sock:
            try:
                sock.sendall(
                    starts[index % len(starts)] + random.bytes(int(random.integers(1, 400)))
                )
                sock.shutdown(socket.SHUT_WR)
                sock.recv(1000)
            except OSError:
                pass
    assert gateway.get(f"{MODEL}:sample?count=1").status == 200
    assert "Traceback" not in server.log.read_text()


def test_a_body_that_stalls_is_408_also_in_a_stream(folder):
    line = json.dumps({"latents": [[0.0, 0.0, 0.0]]}).encode() + b"\n"
    head = "POST {} HTTP/1.1\r\nHost: localhost\r\ncontent-type: {}\r\ncontent-length: 999\r\n\r\n"
    cases = (
        ("decode", "application/json", b"{"),
        ("decode_stream", "application/x-ndjson", b"{"),
        ("decode_stream", "application/x-npy", b"\x93NUMPY"),
        ("decode_stream", "application/x-ndjson", line),  # a reply has begun
    )
    program = "tests.support.stalling"
    with Server(folder / "models", folder / "stall", *PORTS, program=program) as server:
        address = Caller(server.wait_until_serving().gateway).address
        for operation, media, sent in cases:
            with closing(socket.create_connection(address, 30)) as sock:
                sock.sendall(head.format(f"{MODEL}:{operation}", media).encode() + sent)
                reply = b""
                while b'"requestId"' not in reply and (part := sock.recv(65536)):
                    reply += part
            begun = sent == line
            assert reply.startswith(b"HTTP/1.1 200" if begun else b"HTTP/1.1 408"), reply
            assert b'"status": 408' in reply
            assert b"arrived in 0.5 s" in reply
        # It is the caller's fault.
        assert server.metric("latentserve_requests_total", code="INTERNAL") == 0
    assert "Traceback" not in (folder / "stall").read_text()


def test_the_times_that_peers_have_are_those_of_the_page():
    page = (ROOT / "docs" / "http.md").read_text()
    assert f"{receiving._STALLED_SECONDS:g} s" in page
    assert f"{connection._HEAD_SECONDS:g} s into a head" in page
    assert f"{connection.MAX_HEAD_BYTES // 1024} KiB" in page
