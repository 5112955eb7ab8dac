"""The HTTP port of metrics and probes, alone."""

import contextlib
import http.client
import socket
import threading
import time

import pytest

from service.errors import StartError
from service.observe import http as service_http
from service.observe.http import HttpServer
from tests.support.waiting import wait_until


class State:
    live = ready = True


@pytest.fixture
def state():
    return State()


@pytest.fixture
def server(state):
    def exposition(accept):
        return f"metrics for {accept}".encode(), "text/x-test"

    served = HttpServer("127.0.0.1", 0, exposition, lambda: state.live, lambda: state.ready)
    served.start()
    yield served
    served.close()


def bound(host, port):
    return HttpServer(host, port, lambda _: (b"", "text/plain"), lambda: True, lambda: True)


def ask(server, path, method="GET", headers=None, address="127.0.0.1", body=None):
    connection = http.client.HTTPConnection(address, server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {}, body=body)
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), reply.headers


def test_metrics_are_served_in_the_format_of_the_accept_header(server):
    status, body, headers = ask(server, "/metrics?name=x", headers={"Accept": "text/plain"})
    assert (status, body) == (200, "metrics for text/plain")
    assert headers["Content-Type"] == "text/x-test"


def test_the_probes_follow_the_state(server, state):
    assert ask(server, "/healthz")[:2] == (200, "live\n")
    assert ask(server, "/readyz")[:2] == (200, "ready\n")
    state.ready = False
    assert ask(server, "/healthz")[0] == 200
    assert ask(server, "/readyz")[:2] == (503, "not ready\n")
    state.live = False
    assert ask(server, "/healthz")[0] == 503


def test_unknown_pages_are_404_and_other_methods_405(server):
    assert ask(server, "/")[0] == 404
    assert ask(server, "/etc/passwd")[0] == 404
    status, _, headers = ask(server, "/metrics", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, body, headers = ask(server, "/healthz", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, "", "5")


def test_a_taken_port_is_refused_with_the_remedy(server):
    with pytest.raises(StartError, match=r"http-port: cannot listen on .* --http-port"):
        bound("127.0.0.1", server.port)


def test_the_wildcard_address_is_refused_if_one_address_is_taken(server):
    with pytest.raises(StartError, match="http-port: "):
        bound("0.0.0.0", server.port)


def test_a_port_held_with_so_reuseport_is_refused():
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StartError, match="http-port: "):
            bound("127.0.0.1", other.getsockname()[1])


def test_the_port_can_be_bound_again_right_after_closing(server):
    # The server closes first, so its side of the connections stays in TIME_WAIT.
    for _ in range(3):
        ask(server, "/healthz")
    server.close()
    bound("127.0.0.1", server.port).close()


def test_a_server_that_was_never_started_can_be_closed_twice():
    served = bound("127.0.0.1", 0)
    served.close()
    served.close()
    bound("127.0.0.1", served.port).close()


@pytest.mark.parametrize(
    ("host", "addresses"),
    [
        ("::1", ["::1"]),
        ("[::1]", ["::1"]),
        ("::", ["::1", "127.0.0.1"]),
        ("0.0.0.0", ["127.0.0.1"]),
        ("localhost", None),
    ],
)
def test_every_address_of_a_host_is_served_on_one_port(host, addresses):
    if ":" in host and not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    if addresses is None:
        addresses = {found[4][0] for found in socket.getaddrinfo(host, 0, type=socket.SOCK_STREAM)}
    served = bound(host, 0)
    served.start()
    try:
        for address in addresses:
            assert ask(served, "/healthz", address=address)[0] == 200
    finally:
        served.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_that_is_not_this_machine_is_refused(host):
    with pytest.raises(StartError, match="host: got"):
        bound(host, 0)


def threads():
    return sum(thread.name == "http call" for thread in threading.enumerate())


def test_silent_connections_do_not_lock_out_probes(server):
    silent = []
    try:
        for _ in range(5):
            silent += [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
            assert ask(server, "/healthz")[0] == 200
            assert threads() <= 2 * service_http._MAX_CONNECTIONS
    finally:
        for connection in silent:
            connection.close()


def test_a_client_that_sends_too_slowly_is_disconnected(server, monkeypatch):
    monkeypatch.setattr(service_http, "_SECONDS", 0.2)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=0.05) as slow:
        ended = False
        while not ended:  # a header that never ends, a byte at a time
            assert time.monotonic() < began + 20
            try:
                slow.sendall(b"G")
                ended = slow.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                ended = True
    assert 0.15 < time.monotonic() - began < 5
    wait_until(lambda: threads() == 0)


def test_a_client_that_does_not_read_is_disconnected(monkeypatch):
    monkeypatch.setattr(service_http, "_SECONDS", 0.2)
    requested = threading.Event()

    def exposition(_accept):
        requested.set()
        return bytes(2**26), "text/plain"

    served = HttpServer("127.0.0.1", 0, exposition, bool, bool)
    served.start()
    try:
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
            assert requested.wait(10)
            wait_until(lambda: threads() == 0)
    finally:
        served.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x00\xff" * 100,
        b"GET\r\n\r\n",
        b"G" * 100_000,
        b"",
        b"GET /metrics HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n",
        b"GET /metrics HTTP/1.1\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    ],
)
def test_malformed_requests_neither_stop_the_server_nor_reach_the_log(server, data, caplog):
    address = "127.0.0.1", server.port
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=10) as connection:
        connection.sendall(data)
    assert ask(server, "/healthz")[0] == 200
    assert not caplog.records


def test_a_request_with_an_unwanted_body_gets_its_reply(server):
    for _ in range(20):
        assert ask(server, "/metrics", "POST", body=b"x" * 20_000)[0] == 405


def test_an_exception_is_logged_and_answered_with_500_without_its_text(caplog):
    def exposition(_accept):
        raise RuntimeError("a secret detail")

    served = HttpServer("127.0.0.1", 0, exposition, bool, bool)
    served.start()
    try:
        status, body, _ = ask(served, "/metrics")
    finally:
        served.close()
    assert (status, body) == (500, "internal error\n")
    assert "a secret detail" in caplog.text
