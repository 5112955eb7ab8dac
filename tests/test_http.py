"""The HTTP port alone."""

import contextlib
import http.client
import socket
import time

import pytest

from service import http as service_http
from service.errors import StartError
from service.http import HttpServer


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


def ask(server, path, method="GET", headers=None):
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=10)
    with contextlib.closing(connection):
        connection.request(method, path, headers=headers or {})
        reply = connection.getresponse()
        return reply.status, reply.read().decode(), reply.headers


def test_metrics_come_in_the_format_asked_for(server):
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


def test_other_pages_and_other_methods_are_refused(server):
    assert ask(server, "/")[0] == 404
    assert ask(server, "/etc/passwd")[0] == 404
    status, _, headers = ask(server, "/metrics", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    status, body, headers = ask(server, "/healthz", "HEAD")
    assert (status, body, headers["Content-Length"]) == (200, "", "5")


def test_a_taken_port_is_refused_with_the_remedy(server):
    with pytest.raises(StartError, match=r"http-port: cannot listen on .* --http-port"):
        HttpServer("127.0.0.1", server.port, lambda _: (b"", ""), bool, bool)


def test_a_port_is_free_again_at_once(server):
    ask(server, "/healthz")
    server.close()
    again = HttpServer("127.0.0.1", server.port, lambda _: (b"", ""), bool, bool)
    again.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "no.such.host.invalid"])
def test_a_host_that_is_not_here_is_refused(host):
    with pytest.raises(StartError, match="host: got"):
        HttpServer(host, 0, lambda _: (b"", ""), bool, bool)


def test_those_who_send_nothing_do_not_keep_the_probes_out(server, monkeypatch):
    monkeypatch.setattr(service_http._Handler, "timeout", 0.5)
    silent = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(40)]
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if ask(server, "/healthz")[0] == 200:
                    break
            assert time.monotonic() < deadline
            time.sleep(0.1)
    finally:
        for each in silent:
            each.close()


@pytest.mark.parametrize("noise", [b"\x00\xff" * 100, b"GET\r\n\r\n", b"G" * 100_000, b""])
def test_noise_does_not_hurt(server, noise):
    address = "127.0.0.1", server.port
    with contextlib.suppress(OSError), socket.create_connection(address, timeout=10) as connection:
        connection.sendall(noise)
    assert ask(server, "/healthz")[0] == 200
