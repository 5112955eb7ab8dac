"""Ray Serve, called through its gRPC proxy."""

import os
from dataclasses import replace
from pathlib import Path

from benchmarks.environments import python
from benchmarks.graphs import graph
from benchmarks.processes import CACHE, ROOT, Program
from benchmarks.servers.plain import plain_call
from benchmarks.servers.ports import free_port
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class RayServe(Server):
    """Ray Serve with Ray's settings for throughput and one replica of `ray_program.Vae`."""

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        interpreter = python("rayserve")
        self.port = free_port()
        paths = (
            ROOT,
            Path(__file__).with_name("ray_site"),
            # Ray's proxy imports the generated stubs by module name.
            CACHE / "stubs" / "rayserve",
        )
        program = Program(
            [interpreter, "-m", "benchmarks.servers.ray_program", graph("encode").parent,
             str(self.port)],
            self.name,
            env={
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                # Keeps the proxy; otherwise callers would have to find the replicas' ports.
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )  # fmt: skip
        program.line("listening on")
        return program

    def start(self) -> None:
        """Starts the server and waits until its model answers."""
        super().start()
        # The proxy learns of the application a little after its port opens.
        self.wait_until_answering(Shape("decode", 1, "uint8", 1, 1))

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        return replace(plain_call(shape), metadata=(("application", "default"),))
