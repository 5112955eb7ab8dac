"""`make` installs torch's CPU build on machines without an NVIDIA GPU, and says so."""

import os
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deploy import torch_index
from tests.support import ROOT


class Index(BaseHTTPRequestHandler):
    """A package index that serves torch."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/whl/cpu/torch/" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def index() -> Iterator[str]:
    """URL of an index that responds."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield f"http://127.0.0.1:{server.server_port}/whl/cpu"
        server.shutdown()


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Simulates Linux without a GPU; returns the only folder on PATH."""
    folder = tmp_path / "programs"
    folder.mkdir()
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(torch_index, "DEVICE", tmp_path / "nvidia0")
    monkeypatch.setenv("PATH", str(folder))
    # Else a configured proxy would get the requests to 127.0.0.1.
    monkeypatch.setenv("no_proxy", "*")
    return folder


def write_program(path: Path, text: str) -> None:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def choice(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    index: str,
    seconds: float = 2.0,
) -> tuple[str, str]:
    """The chosen index and the line on stderr."""
    options = ["--index", index, "--seconds", str(seconds)]
    monkeypatch.setattr(sys, "argv", ["torch_index.py", *options])
    assert torch_index.main() == 0
    chosen, said = capsys.readouterr()
    assert said.count("\n") == 1
    return chosen.strip(), said


def test_without_a_gpu_the_index_of_cpu_builds_is_chosen(capsys, monkeypatch, index):
    chosen, said = choice(capsys, monkeypatch, index)
    assert chosen == index
    assert said.startswith(f"torch: the CPU build from {index}, since there is no NVIDIA GPU")


@pytest.mark.parametrize("text", ["echo 'No devices were found'; exit 6", "exit 0", "exec nothing"])
def test_a_driver_without_a_gpu_does_not_count_as_one(capsys, monkeypatch, index, machine, text):
    write_program(machine / "nvidia-smi", text)
    assert choice(capsys, monkeypatch, index)[0] == index


def test_with_a_gpu_pips_default_index_is_chosen(capsys, monkeypatch, index, machine, tmp_path):
    write_program(machine / "nvidia-smi", "echo 'GPU 0: NVIDIA H100 (UUID: GPU-1)'")
    chosen, said = choice(capsys, monkeypatch, index)
    assert chosen == ""
    assert "since there is an NVIDIA GPU" in said
    (machine / "nvidia-smi").unlink()
    # Containers may have the device without the driver's programs.
    (tmp_path / "nvidia0").touch()
    assert choice(capsys, monkeypatch, index)[0] == ""


def test_other_systems_use_pips_default_index(capsys, monkeypatch, index):
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choice(capsys, monkeypatch, index)[0] == ""


def test_a_silent_index_is_given_up_after_the_timeout(capsys, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        silent_index = f"http://127.0.0.1:{silent.getsockname()[1]}/whl/cpu"
        chosen, said = choice(capsys, monkeypatch, silent_index, seconds=0.5)
        assert time.monotonic() - began < 5
    assert chosen == ""
    assert "did not respond within 0.5 s" in said


@pytest.mark.parametrize("wrong", ["http://127.0.0.1:1/whl/cpu", "nonsense", "{index}/nothing"])
def test_an_unreachable_or_wrong_index_is_not_chosen(capsys, monkeypatch, index, wrong):
    assert choice(capsys, monkeypatch, wrong.format(index=index))[0] == ""


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ([], ["--index-url", "http://chosen/whl/cpu", "torch"]),
        (["TORCH_INDEX="], ["torch"]),
        (["TORCH_INDEX=http://given/whl"], ["--index-url", "http://given/whl", "torch"]),
    ],
)
@pytest.mark.parametrize("by_environment", [False, True])
def test_make_installs_torch_from_the_given_or_chosen_index(
    tmp_path, machine, monkeypatch, given, wanted, by_environment
):
    """With a fake Python, whose virtual environments have a `pip` that records its arguments."""
    monkeypatch.setenv("PATH", os.defpath)
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    asked = tmp_path / "asked"
    write_program(machine / "pip", f'echo "$@" >> {asked}')
    write_program(
        machine / "python",
        f'case "$*" in\n'
        f'  "-m venv "*) mkdir -p "$3/bin" && cp {machine / "pip"} "$3/bin" ;;\n'
        "  deploy/torch_index.py) echo http://chosen/whl/cpu ;;\n"
        "esac",
    )
    # A `make` under `make test` would inherit its flags and variables.
    own = ("TORCH_INDEX", "MAKEFLAGS", "MFLAGS", "MAKEOVERRIDES")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    if by_environment:
        environment |= dict(variable.split("=", 1) for variable in given)
        given = []
    done = subprocess.run(
        ["make", f"PYTHON={machine / 'python'}", "install", *given],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    torch, everything = (shlex.split(line) for line in asked.read_text().splitlines())
    assert [word for word in torch if word not in ("install", "--quiet", "--no-deps")] == wanted
    assert everything[-2:] == ["-e", ".[dev]"]
