"""`docker compose` on a real engine, for the tests that need containers (make test-compose)."""

import json
import os
import re
import secrets
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from latentserve.client import Client
from tests.support import ROOT
from tests.support.processes import free_port

BUILD_SECONDS = 1800.0
UP_SECONDS = 600.0


def run(
    command: Sequence[str | Path], timeout: float = 120.0, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Runs a command to its end, whatever its status."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


class Project:
    """A compose project with a name, ports and settings of its own.

    Args:
        settings: Variables of docker-compose.yml, and Compose's own.

    Attributes:
        name: Its name.
        ports: The ports on 127.0.0.1, by the variable that sets each.
    """

    def __init__(self, **settings: str):
        self.name = f"latentserve-test-{secrets.token_hex(4)}"
        files = [ROOT / "docker-compose.yml", ROOT / "deploy" / "envoy" / "compose.tls.yaml"]
        text = "".join(file.read_text() for file in files)
        names = re.findall(r"- \S+:\$\{(\w+_PORT):-", text)
        self.ports = {name: free_port() for name in names}
        self._env = {**{name: str(port) for name, port in self.ports.items()}, **settings}

    def address(self, service: str = "GRPC") -> str:
        """Address of a port on this machine: of LATENTSERVE_`service`_PORT."""
        return f"127.0.0.1:{self.ports[f'LATENTSERVE_{service}_PORT']}"

    def set(self, **settings: str) -> None:
        """Sets variables of every later command."""
        self._env.update(settings)

    def attempt(self, *arguments: str, timeout: float = 120.0) -> subprocess.CompletedProcess[str]:
        """Runs `docker compose` for this project, whatever its status."""
        return run(["docker", "compose", "-p", self.name, *arguments], timeout, self._env)

    def __call__(self, *arguments: str, timeout: float = 120.0) -> str:
        """Runs `docker compose` for this project and returns what it printed."""
        done = self.attempt(*arguments, timeout=timeout)
        if done.returncode != 0:
            logs = self.attempt("logs", "--no-color", "--tail", "50").stdout
            shown = f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}\nlogs:\n{logs}"
            raise AssertionError(
                f"docker compose {' '.join(arguments)}: status {done.returncode}\n{shown}"
            )
        return done.stdout

    def up(self, *options: str) -> None:
        """Brings all of it up and waits until everything is healthy."""
        seconds = f"{UP_SECONDS:.0f}"
        self("up", "-d", "--wait", "--wait-timeout", seconds, *options, timeout=UP_SECONDS + 60.0)

    def down(self) -> None:
        """Removes its containers, volumes and images."""
        self("down", "--volumes", "--remove-orphans", "--rmi", "local")

    def inspect(self, service: str) -> dict[str, Any]:
        """What the engine knows about the container of a service, running or not."""
        (container,) = self.containers(service)
        return inspect(container)

    def containers(self, service: str) -> list[str]:
        """Identifiers of the containers of a service, running or not, by their number."""
        found = self("ps", "--all", "--quiet", service).split()
        return sorted(found, key=lambda container: str(inspect(container)["Name"]))

    def published(self, **inside: int) -> dict[str, list[dict[str, str]]]:
        """The `NetworkSettings.Ports` of a container with ports published on 127.0.0.1 alone.

        Args:
            inside: Ports of the container, by the name that `address` takes.
        """
        return {
            f"{port}/tcp": [
                {"HostIp": "127.0.0.1", "HostPort": str(self.ports[f"LATENTSERVE_{name}_PORT"])}
            ]
            for name, port in inside.items()
        }

    def logs(self, service: str) -> str:
        """What a service has logged, over all its starts."""
        return self("logs", "--no-color", "--no-log-prefix", service)

    def client(self) -> Client:
        """A client on the host, through the published port."""
        return Client(self.address())


def docker(*arguments: str, timeout: float = 120.0) -> str:
    """Runs `docker` and returns what it printed."""
    done = run(["docker", *arguments], timeout)
    assert done.returncode == 0, f"docker {' '.join(arguments)}: {done.stderr}"
    return done.stdout


def inspect(container: str) -> dict[str, Any]:
    """What the engine knows about a container, running or not."""
    described: dict[str, Any] = json.loads(docker("inspect", container))[0]
    return described
