"""Servers whose standard streams are closed, full, or pipes that nobody reads."""

import os
import signal
import subprocess
import sys
import time

import pytest

from latentserve.client import Client, Unavailable
from tests.support.processes import free_port
from tests.support.tiny import write_tiny

#: Shell redirections, and the number of workers.
WAYS = [
    ("<&- >/dev/null 2>/dev/null", 1),
    ("<&- >&- 2>&-", 1),
    ("<&- >&- 2>&-", 2),
    (">/dev/full 2>/dev/full", 1),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    write_tiny(tmp_path_factory.mktemp("streams") / "models" / "one")
    return tmp_path_factory.getbasetemp() / "streams0" / "models"


def wait_until_serving(port: int, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + 60
    with Client(f"127.0.0.1:{port}") as client:
        while time.monotonic() < deadline:
            assert process.poll() is None
            try:
                if client.is_serving():
                    return
            except Unavailable:
                time.sleep(0.05)
    raise AssertionError("not serving")


@pytest.mark.slow
def test_a_server_serves_and_ends_with_0_without_its_standard_streams(folder):
    served = []
    for redirection, workers in WAYS:
        port = free_port()
        command = (
            f"exec {sys.executable} -m latentserve serve --models {folder} --port {port} "
            f"--http-port off --workers {workers} --lame-duck-seconds 0 {redirection}"
        )
        served.append((port, subprocess.Popen(["sh", "-c", command])))
    try:
        for port, process in served:
            wait_until_serving(port, process)
            process.send_signal(signal.SIGTERM)
        assert [process.wait(30) for _, process in served] == [0] * len(WAYS)
    finally:
        for _, process in served:
            if process.poll() is None:
                process.kill()
                process.wait(10)


def test_the_addresses_go_to_the_log_where_stdout_has_no_reader(folder, tmp_path):
    port = free_port()
    reading, writing = os.pipe()
    os.close(reading)
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "latentserve", "serve", "--models", str(folder),
                   "--port", str(port), "--http-port", "off"]  # fmt: skip
        process = subprocess.Popen(command, stdout=writing, stderr=log)
    os.close(writing)
    try:
        wait_until_serving(port, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.wait(10)
    text = (tmp_path / "log").read_text()
    assert f"listening on 127.0.0.1:{port}" in text
    assert "Traceback" not in text
