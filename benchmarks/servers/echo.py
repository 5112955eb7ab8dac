"""Servers without a model that return what they receive: the cost of a transport."""

import sys

from benchmarks.graphs import WrongAnswer
from benchmarks.processes import Program
from benchmarks.servers.server import Call, Server
from benchmarks.shapes import Shape


class Echo(Server):
    """Echo server with one of the transports of `echo_program.py`.

    Args:
        name: Name in the table.
        transport: Key of `echo_program.TRANSPORTS`.
    """

    def __init__(self, name: str, transport: str):
        super().__init__(name)
        self._transport = transport

    def launch(self) -> Program:
        """Starts the server's program and sets `port`."""
        program = Program(
            [sys.executable, "-m", "benchmarks.servers.echo_program", self._transport], self.name
        )
        self.port = int(program.line("listening on").split()[-1])
        return program

    def takes(self, shape: Shape) -> bool:
        """Whether a shape has one row per call; more would measure memory bandwidth instead."""
        return shape.rows == 1

    def call(self, shape: Shape) -> Call:
        """Builds the request for a shape: the raw bytes of an array of that shape."""
        return Call("/echo.Echo/Echo", shape.array().tobytes(), lambda _answer: [])

    def check(self, shape: Shape, call: Call, answer: bytes) -> None:
        """Compares a reply with the request's message.

        Raises:
            WrongAnswer: They differ.
        """
        if answer != call.message:
            raise WrongAnswer(f"{shape.name}: got {len(answer)} other bytes than were sent")
