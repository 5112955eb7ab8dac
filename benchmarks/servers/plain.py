"""A plain grpc.aio servicer as a contender."""

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.graphs import graph
from benchmarks.processes import Program
from benchmarks.servers import stubs
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class Plain(Server):
    """The plain grpc.aio servicer of `plain_program.py`."""

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        folder = graph("encode").parent
        program = Program(
            [sys.executable, "-m", "benchmarks.servers.plain_program", folder], self.name
        )
        self.port = int(program.line("listening on").split()[-1])
        return program

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        return plain_call(shape)


def plain_call(shape: Shape) -> Call:
    """Builds the request for a shape as a message of `plain.proto`."""
    messages, _services = stubs.load("plain")
    data = shape.array().tobytes()
    if shape.rpc == "encode":
        request = messages.EncodeRequest(**{shape.dtype: data})
    else:
        request = messages.DecodeRequest(latents=data, uint8=shape.dtype == "uint8")

    def read(answer: bytes) -> list[NDArray[Any]]:
        if shape.rpc == "encode":
            reply = messages.EncodeResponse.FromString(answer)
            return [np.frombuffer(data, np.float32) for data in (reply.mean, reply.log_var)]
        images = messages.DecodeResponse.FromString(answer).images
        return [np.frombuffer(images, shape.dtype)]

    return Call(f"/plain.Vae/{shape.rpc.capitalize()}", request.SerializeToString(), read)
