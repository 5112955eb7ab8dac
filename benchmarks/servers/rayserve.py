"""Ray Serve, through its gRPC proxy."""

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
    """One replica with Ray Serve's settings for throughput.

    See `ray_program.py`.
    """

    def launch(self) -> Program:
        """See `Server`."""
        interpreter = python("rayserve")
        self.port = free_port()
        paths = (
            ROOT,
            Path(__file__).with_name("ray_site"),
            # Ray's proxy imports the stubs by name.
            CACHE / "stubs" / "rayserve",
        )
        program = Program(
            [interpreter, "-m", "benchmarks.servers.ray_program", graph("encode").parent,
             str(self.port)],
            self.name,
            env={
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
                # Without the proxy, callers would have to find the replicas' ports.
                "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
                "RAY_USAGE_STATS_ENABLED": "0",
            },
        )  # fmt: skip
        program.line("listening on")
        return program

    def start(self) -> None:
        """See `Contender`."""
        super().start()
        # The proxy is notified of the application a little later.
        self.wait_until_answering(Shape("decode", 1, "uint8", 1, 1))

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """See `Contender`."""
        return True

    def call(self, shape: Shape) -> Call:
        """See `Server`."""
        return replace(plain_call(shape), metadata=(("application", "default"),))
