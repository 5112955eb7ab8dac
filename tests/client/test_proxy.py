"""Proxies of the environment, as Docker injects them into every container."""

import socket
import threading

import numpy as np
import pytest

from latentserve._client import proxy
from latentserve.client import Retry, Unavailable
from tests.support.clients import KINDS, connect
from tests.support.in_process import run_cli
from tests.support.processes import Server
from tests.support.tiny import write_tiny

VARIABLES = ("grpc_proxy", "https_proxy", "http_proxy", "no_grpc_proxy", "no_proxy")
NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("proxy")
    write_tiny(folder / "models" / "tiny")
    with Server(folder / "models", folder / "log", "--http-port", "0") as running:
        yield running.wait_until_serving()


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


class Proxy:
    """A proxy that refuses every connection.

    Attributes:
        url: Its URL.
        asked: The first line of each request.
    """

    def __init__(self) -> None:
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._socket.getsockname()[1]}"
        self.url = f"http://user:secret@{self.address}"
        self.asked: list[str] = []
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            with connection:
                self.asked.append(connection.recv(4096).decode().partition("\r\n")[0])
                connection.sendall(b"HTTP/1.1 403 Forbidden\r\n\r\n")

    def __enter__(self) -> "Proxy":
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


@pytest.mark.parametrize("variable", ["grpc_proxy", "https_proxy", "http_proxy"])
def test_no_proxy_stands_between_a_client_and_its_own_machine(server, monkeypatch, variable):
    monkeypatch.setenv(variable, NOBODY)
    port = server.target.rpartition(":")[2]
    for kind in KINDS:
        for target in (server.target, f"localhost:{port}", f"dns:///localhost:{port}",
                       f"ipv4:127.0.0.1:{port}", f"0.0.0.0:{port}"):  # fmt: skip
            with connect(kind, target, timeout=20) as client:
                assert client.is_serving()
    done = run_cli("check", "--server", f"localhost:{port}", env={variable: NOBODY})
    assert (done.returncode, done.stdout) == (0, "SERVING\n")


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY"])
def test_the_load_generator_reads_local_metrics_without_a_proxy(server, name):
    done = run_cli(
        "bench", "--server", server.target, "--metrics", f"{server.origin}/metrics",
        "--seconds", "0.1", "--warmup", "0", env={name: NOBODY},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "server CPU" in done.stdout


@pytest.mark.parametrize("kind", KINDS)
def test_an_error_elsewhere_names_the_proxy_and_not_its_password(monkeypatch, kind):
    with Proxy() as between:
        monkeypatch.setenv("http_proxy", between.url)
        once = Retry(attempts=1)
        said = (
            r"^models\.example:50051 cannot be reached \(.*\); http_proxy leads through the proxy "
            f"{between.address}, and no_proxy=models.example around it$"
        )
        with (
            connect(kind, "models.example:50051", retry=once, timeout=20) as client,
            pytest.raises(Unavailable, match=said) as caught,
        ):
            client.info()
        assert "secret" not in str(caught.value)
        assert between.asked == ["CONNECT models.example:50051 HTTP/1.1"]
        monkeypatch.setenv("no_proxy", "*")
        with (
            connect(kind, "models.invalid:50051", retry=once, timeout=20) as client,
            pytest.raises(Unavailable, match=r"cannot be reached \((?!.*leads through)"),
        ):
            client.info()
        assert len(between.asked) == 1


def test_a_stream_names_the_proxy_too(monkeypatch):
    with Proxy() as between:
        monkeypatch.setenv("http_proxy", between.url)
        with (
            connect("sync", "models.example:50051", retry=Retry(attempts=1)) as client,
            pytest.raises(Unavailable, match="leads through the proxy"),
        ):
            next(client.decode_stream([np.zeros((1, 3))]))


@pytest.mark.parametrize(
    "target",
    [
        "localhost:1", "LOCALHOST:1", "localhost", "localhost.:1", "api.localhost:1", "127.0.0.1:1",
        "127.9.9.9:1", "[::1]:1", "::1", "[::ffff:127.0.0.1]:1", "0.0.0.0:1", "[::]:1",
        "ip6-localhost:1", "dns:localhost:1", "dns:///localhost:1", "dns://8.8.8.8/localhost:1",
        "ipv4:127.0.0.1:1,127.0.0.2:1", "ipv6:[::1]:1", "ipv6:[::1%25lo]:1", "unix:a.sock",
        "unix:///run/a.sock", "unix-abstract:a",
    ],
)  # fmt: skip
def test_targets_of_this_machine(monkeypatch, target):
    monkeypatch.setenv("http_proxy", NOBODY)
    assert proxy.is_local(target)
    assert proxy.proxy_of(target) is None
    assert proxy.channel_arguments(target) == [("grpc.enable_http_proxy", 0)]


@pytest.mark.parametrize(
    "target",
    [
        "example.org:1", "localhost.example.org:1", "dns:///example.org:1", "10.0.0.1:1",
        "[fd00::1]:1", "notlocalhost:1", "127.0.0.1.example.org:1", "ipv4:127.0.0.1:1,10.0.0.1:1",
        "xds:///models", "dns://127.0.0.1/example.org:1",
    ],
)  # fmt: skip
def test_targets_elsewhere(monkeypatch, target):
    assert not proxy.is_local(target)
    assert proxy.proxy_of(target) is None
    monkeypatch.setenv("http_proxy", NOBODY)
    assert proxy.proxy_of(target) == ("http_proxy", "127.0.0.1:9")
    assert proxy.channel_arguments(target) == []


@pytest.mark.parametrize(
    ("environment", "used"),
    [
        ({"grpc_proxy": "http://a:1", "http_proxy": "http://b:2"}, ("grpc_proxy", "a:1")),
        ({"https_proxy": "http://a:1", "http_proxy": "http://b:2"}, ("https_proxy", "a:1")),
        ({"grpc_proxy": "", "http_proxy": "http://b:2"}, None),
        ({"http_proxy": "https://a:1"}, None),
        ({"http_proxy": "a:1"}, None),
        ({"http_proxy": "http://["}, None),
        ({"HTTP_PROXY": "http://a:1"}, None),
        ({"http_proxy": "http://a:1", "no_proxy": "x, .example.org"}, None),
        ({"http_proxy": "http://a:1", "no_proxy": "example.org"}, None),
        ({"http_proxy": "http://a:1", "no_proxy": "*"}, None),
        ({"http_proxy": "http://a:1", "no_proxy": "other.org,,10.0.0.0/8"}, ("http_proxy", "a:1")),
        (
            {"http_proxy": "http://a:1", "no_proxy": "*", "no_grpc_proxy": "x"},
            ("http_proxy", "a:1"),
        ),
    ],
)
def test_the_proxy_is_the_one_that_grpc_takes(monkeypatch, environment, used):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy.proxy_of("models.example.org:50051") == used


def test_networks_are_excepted(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://a:1")
    monkeypatch.setenv("no_proxy", "10.0.0.0/8,fd00::/16")
    assert proxy.proxy_of("10.1.2.3:50051") is None
    assert proxy.proxy_of("[fd00::5]:50051") is None
    assert proxy.proxy_of("11.1.2.3:50051") is not None
