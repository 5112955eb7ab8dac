"""Settings and ports that `serve --workers N` refuses, and how it holds its port."""

import socket
from pathlib import Path

import pytest

from service.errors import StartError
from service.net.addresses import free_addresses, shared_sockets
from tests.support.in_process import refused_start
from tests.support.processes import Server, latentserve


def test_workers_refuse_a_bad_certificate_with_one_error_and_status_2(folder, tmp_path):
    (tmp_path / "bad.pem").write_text("nothing")
    arguments = ("--tls-cert", tmp_path / "bad.pem", "--tls-key", tmp_path / "bad.pem")
    assert_refused(folder, "are not a PEM certificate", *arguments)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("--models", "/nonexistent"), "models folder /nonexistent: No such file"),
        (("--default-model", "three"), "default-model: got 'three'"),
        (("--route", "one=1:90,9:10"), "route: one/9 is not served: no version 9"),
        (("--device", "tpu"), "device: got 'tpu'"),
        (("--host", "192.0.2.1"), "host: got '192.0.2.1', wanted an address of this machine"),
        (("--workers", "0"), "--workers: got '0'"),
    ],
)
def test_workers_refuse_unusable_settings_with_one_error_and_status_2(folder, arguments, text):
    assert_refused(folder, text, *arguments)


def assert_refused(folder: Path, text: str, *arguments: str | Path) -> None:
    options = ("--models", folder, "--port", "0", "--http-port", "off", "--workers", "2")
    done = latentserve("serve", *options, *arguments, timeout=60)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("latentserve")]
    assert len(errors) == 1, done.stderr
    assert text in errors[0]
    assert done.stderr.count(text) == 1
    assert "Traceback" not in done.stderr


@pytest.mark.usefixtures("each_transport")
@pytest.mark.parametrize("holder", ["alone", "workers"])
def test_a_taken_port_is_refused_by_and_with_workers(folder, tmp_path, holder):
    count = {"alone": "1", "workers": "2"}[holder]
    with Server(folder, tmp_path / "log", "--workers", count) as server:
        port = server.target.rpartition(":")[2]
        arguments = ("--models", folder, "--port", port)
        for done in (
            latentserve("serve", *arguments, "--http-port", "off", "--workers", "2"),
            refused_start(*arguments),
        ):
            assert done.returncode == 2
            assert f"cannot listen on 127.0.0.1:{port}" in done.stderr.splitlines()[-1]
            assert "Traceback" not in done.stderr


def test_a_shared_port_is_held_before_any_worker_listens():
    (held,) = shared_sockets("127.0.0.1", 0)
    with held:
        port = held.getsockname()[1]
        for bind in (shared_sockets, free_addresses):
            with pytest.raises(StartError, match=f"cannot listen on 127.0.0.1:{port}"):
                bind("127.0.0.1", port)
        # A worker can bind it all the same.
        with socket.socket() as worker:
            worker.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            worker.bind(("127.0.0.1", port))


def test_connections_in_time_wait_do_not_block_a_shared_port():
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        port = listening.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as caller:
            accepted, _ = listening.accept()
            # The side that closes first keeps the connection in TIME_WAIT.
            accepted.close()
            assert caller.recv(1) == b""
    (held,) = shared_sockets("127.0.0.1", port)
    held.close()
