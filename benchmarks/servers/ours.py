"""`latentserve serve` as a contender."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.graphs import models
from benchmarks.processes import Program
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape
from latentserve.v1 import latent_service_pb2 as pb
from latentserve.v1 import tensor_pb2

_DTYPES = {"uint8": tensor_pb2.DATA_TYPE_UINT8, "float32": tensor_pb2.DATA_TYPE_FLOAT32}
_FORMATS = {"uint8": pb.IMAGE_FORMAT_UINT8, "float32": pb.IMAGE_FORMAT_FLOAT32}


class Ours(Server):
    """`latentserve serve` with its default settings.

    Args:
        name: Name in the table.
        arguments: Further command-line arguments.
        checkout: Checkout whose server is run; this one by default.
    """

    # The varint Timing.batch_rows takes one or two bytes.
    slack_bytes = 2

    def __init__(self, name: str, arguments: Sequence[str] = (), checkout: Path | None = None):
        super().__init__(name)
        self._arguments = arguments
        self._checkout = checkout

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [sys.executable, "-m", "latentserve", "serve", "--models", models(), "--port", "0",
             "--http-port", "0", "--log-level", "warning", *self._arguments],
            self.name,
            root=self._checkout,
        )  # fmt: skip
        self.port = int(program.line("listening on").rpartition(":")[2])
        return program

    def start(self) -> None:
        """Starts the server and waits until its model answers."""
        super().start()
        self.wait_until_answering(Shape("decode", 1, "uint8", 1, 1))

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""
        array = shape.array()
        sent = "float32" if shape.rpc == "decode" else shape.dtype
        tensor = tensor_pb2.Tensor(dtype=_DTYPES[sent], shape=array.shape, data=array.tobytes())
        request: Any
        if shape.rpc == "encode":
            request = pb.EncodeRequest(images=tensor_pb2.Images(tensor=tensor))
        else:
            request = pb.DecodeRequest(latents=tensor, format=_FORMATS[shape.dtype])

        def read(answer: bytes) -> list[NDArray[Any]]:
            if shape.rpc == "encode":
                reply = pb.EncodeResponse.FromString(answer)
                return [
                    np.frombuffer(moment.data, np.float32) for moment in (reply.mean, reply.log_var)
                ]
            images = pb.DecodeResponse.FromString(answer).images.tensor
            return [np.frombuffer(images.data, shape.dtype)]

        method = f"/latentserve.v1.LatentService/{shape.rpc.capitalize()}"
        return Call(method, request.SerializeToString(), read)
