"""mosec, whose HTTP server is written in Rust, with onnxruntime in a Python worker.

It speaks HTTP/1.1. A request's body is the array's bytes alone, and so is the reply's: mean and
log_var one after the other, or the images.
"""

import http.client
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.environments import python
from benchmarks.graphs import graph
from benchmarks.processes import Program, ServerFailed
from benchmarks.servers.ports import free_port
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class Mosec(Server):
    """mosec with one route and one worker process per RPC and dtype; see `mosec_program.py`."""

    http1 = True

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        self.port = free_port()
        return Program(
            [python("mosec"), "-m", "benchmarks.servers.mosec_program", graph("encode").parent,
             "--address", "127.0.0.1", "--port", str(self.port), "--log-level", "warning"],
            self.name,
        )  # fmt: skip

    def start(self) -> None:
        """Starts the server and waits until its models answer."""
        self._program = self.launch()
        self._program.drain()
        for rpc in ("encode", "decode"):
            for dtype in ("uint8", "float32"):
                self.wait_until_answering(Shape(rpc, 1, dtype, 1, 1))

    def takes(self, shape: Shape) -> bool:  # noqa: ARG002
        """Returns True: the server supports every shape."""
        return True

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape."""

        def read(answer: bytes) -> list[NDArray[Any]]:
            if shape.rpc == "encode":
                return np.split(np.frombuffer(answer, np.float32), 2)
            return [np.frombuffer(answer, shape.dtype)]

        return Call(f"/{shape.rpc}_{shape.dtype}", shape.array().tobytes(), read)

    def ask(self, call: Call, timeout: float = 60.0) -> bytes:
        """Makes one call and returns the reply's body.

        Raises:
            ServerFailed: The status is not 200, or there is no reply.
        """
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("POST", call.method, call.message)
            reply = connection.getresponse()
            body = reply.read()
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailed(f"{self.name}: {error}") from None
        finally:
            connection.close()
        if reply.status != 200:
            raise ServerFailed(f"{self.name}: status {reply.status}: {body[:200]!r}")
        return body
