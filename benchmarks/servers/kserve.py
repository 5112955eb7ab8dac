"""KServe's Python SDK as a gRPC server."""

from benchmarks.environments import python
from benchmarks.graphs import graph
from benchmarks.processes import Program
from benchmarks.servers.inference import inference_call
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class KServe(Server):
    """KServe's gRPC server over onnxruntime; see `kserve_program.py`."""

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [python("kserve"), "-m", "benchmarks.servers.kserve_program", graph("encode").parent],
            self.name,
        )
        self.port = int(program.line("listening on").split()[-1])
        return program

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        return inference_call(shape, f"{shape.rpc}_{shape.dtype}")
