"""Contenders on pyvoy, an ASGI server with Envoy's HTTP/2; they run `pyvoy_app.py`."""

from benchmarks.environments import python
from benchmarks.graphs import models
from benchmarks.processes import ROOT, Program
from benchmarks.servers.echo import Echo
from benchmarks.servers.ours import Ours
from benchmarks.servers.ports import free_port
from benchmarks.shapes import Shape


def launch(name: str, app: str, port: int) -> Program:
    """Starts pyvoy with the application `app` of `pyvoy_app.py`."""
    interpreter = python("pyvoy")
    return Program(
        [interpreter, "-m", "pyvoy._cli", "--port", str(port), "--no-lifespan",
         f"benchmarks.servers.pyvoy_app:{app}"],
        name,
        env={"PYTHONPATH": str(ROOT), "BENCHMARK_BUNDLE": str(models() / "dense" / "1")},
    )  # fmt: skip


class PyvoyEcho(Echo):
    """Echo server on pyvoy.

    Args:
        name: Name in the table.
    """

    def __init__(self, name: str):
        super().__init__(name, "pyvoy")

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        self.port = free_port()
        return launch(self.name, "echo", self.port)


class Pyvoy(Ours):
    """latentserve's servicer on pyvoy."""

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        self.port = free_port()
        return launch(self.name, "ours", self.port)

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True
