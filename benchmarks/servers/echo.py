"""Servers without a model that return what they receive: the cost of a transport."""

import sys

from benchmarks.graphs import WrongAnswer
from benchmarks.processes import Program
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class Echo(Server):
    """See `echo_program.py`.

    Args:
        name: Name in the table.
        transport: One of its TRANSPORTS.
    """

    def __init__(self, name: str, transport: str):
        super().__init__(name)
        self._transport = transport

    def launch(self) -> Program:
        """See `Server`."""
        program = Program(
            [sys.executable, "-m", "benchmarks.servers.echo_program", self._transport], self.name
        )
        self.port = int(program.line("listening on").split()[-1])
        return program

    def takes(self, shape: Shape) -> bool:
        """Calls of one image: larger ones would measure memory."""
        return shape.rows == 1

    def call(self, shape: Shape) -> Call:
        """The bytes of the image or latent as the message."""
        return Call("/echo.Echo/Echo", shape.array().tobytes(), lambda _answer: [])

    def check(self, shape: Shape, call: Call, answer: bytes) -> None:
        """See `Server`."""
        if answer != call.message:
            raise WrongAnswer(f"{shape.name}: got {len(answer)} other bytes than were sent")
